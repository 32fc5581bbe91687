#!/bin/bash
# Stands in for the entrypoint of PostgreSQL's image: makes the server at its first start, runs the scripts of
# /docker-entrypoint-initdb.d, and becomes the server, as a user of its own.
set -eu
data=/var/lib/postgresql/18/docker
if [ "$(id -u)" = 0 ]; then
    install -d -o postgres -g postgres -m 0700 /var/lib/postgresql /var/lib/postgresql/18 "$data"
    install -d -o postgres -g postgres -m 0755 /run/postgresql
    exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0" "$@"
fi
if [ ! -s "$data/PG_VERSION" ]; then
    initdb --pgdata="$data" --username=postgres --pwfile="$POSTGRES_PASSWORD_FILE" --auth-local=trust --auth-host=scram-sha-256
    echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
    pg_ctl --pgdata="$data" --options="-c listen_addresses='' -c unix_socket_directories=/run/postgresql" --wait start
    for script in /docker-entrypoint-initdb.d/*; do sh "$script"; done
    pg_ctl --pgdata="$data" --mode=fast --wait stop
fi
exec postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/run/postgresql "${@:2}"
