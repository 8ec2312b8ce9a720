FROM filestorage-stand-in/debian:bookworm
# As in the public image, the user redis owns the folder of the data.
RUN apt-get update -q && apt-get install -y -q --no-install-recommends redis-server && rm -rf /var/lib/apt/lists && \
    mkdir /data && chown redis:redis /data
VOLUME /data
WORKDIR /data
EXPOSE 6379
CMD ["redis-server"]
