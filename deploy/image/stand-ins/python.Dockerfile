FROM filestorage-stand-in/debian:bookworm
# As in the public image, the system's Python is the one to install into.
RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && ln -s python3 /usr/bin/python
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
CMD ["python3"]
