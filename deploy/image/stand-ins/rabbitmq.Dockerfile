ARG BASE
FROM ${BASE}
# Debian's own wrapper sends the log into files and insists on its user id; the public image has 999, and lets the user
# guest in from everywhere.
RUN if ! test -x /usr/lib/rabbitmq/bin/rabbitmq-server; then \
        apt-get update -q && apt-get install -y -q --no-install-recommends rabbitmq-server && rm -rf /var/lib/apt/lists; \
    fi && \
    for script in /usr/lib/rabbitmq/bin/rabbitmq*; do ln -sf "$script" "/usr/sbin/$(basename "$script")"; done && \
    usermod -u 999 rabbitmq && groupmod -g 999 rabbitmq && \
    rm -rf /var/lib/rabbitmq && mkdir -p /var/lib/rabbitmq/mnesia /var/log/rabbitmq /etc/rabbitmq/conf.d && \
    printf 'loopback_users.guest = false\nlog.console = true\n' >/etc/rabbitmq/conf.d/10-defaults.conf && \
    chown -R rabbitmq:rabbitmq /var/lib/rabbitmq /var/log/rabbitmq /etc/rabbitmq && rm -f /etc/rabbitmq/rabbitmq-env.conf
COPY rabbitmq-entrypoint /usr/local/bin/docker-entrypoint.sh
ENV HOME=/var/lib/rabbitmq RABBITMQ_LOGS=- LANG=C.UTF-8 LC_ALL=C.UTF-8
VOLUME /var/lib/rabbitmq
EXPOSE 4369 5671 5672 15672 15692 25672
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["rabbitmq-server"]
