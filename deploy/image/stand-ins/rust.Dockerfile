FROM filestorage-stand-in/debian:bookworm
RUN apt-get update -q && apt-get install -y -q --no-install-recommends gcc g++ libc6-dev make && rm -rf /var/lib/apt/lists
COPY toolchain /usr/local
ENV CARGO_HOME=/usr/local/cargo CARGO_HTTP_CAINFO=/etc/ssl/certs/ca-certificates.crt
