# What gcr.io/distroless/cc-debian12:nonroot holds, out of the same Debian packages.
FROM filestorage-stand-in/debian:bookworm AS debian
RUN mkdir -p /out/usr/lib /out/usr/lib64 /out/etc/ssl/certs /out/tmp /out/home/nonroot /out/root /out/var/tmp /out/run && \
    ln -s usr/lib /out/lib && ln -s usr/lib64 /out/lib64 && \
    dpkg -L libc6 libgcc-s1 libgomp1 libstdc++6 libssl3 netbase tzdata 2>/dev/null | sed -n 's#^/\(.\)#\1#p' | \
        while read -r path; do if [ -e "/$path" ]; then echo "$path"; fi; done >/list && \
    tar -C / -c --no-recursion -T /list | tar -C /out -x --keep-directory-symlink && \
    cp -L /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ && \
    cp /etc/nsswitch.conf /etc/os-release /etc/debian_version /out/etc/ && \
    printf '%s\n' root:x:0:0:root:/root:/sbin/nologin nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin \
        nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin >/out/etc/passwd && \
    printf '%s\n' root:x:0: nobody:x:65534: nonroot:x:65532: >/out/etc/group && \
    chown 65532:65532 /out/home/nonroot && chmod 700 /out/home/nonroot /out/root && chmod 1777 /out/tmp /out/var/tmp

FROM scratch
COPY --from=debian /out /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
WORKDIR /home/nonroot
USER 65532
