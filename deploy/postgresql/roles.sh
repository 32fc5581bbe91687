#!/bin/sh
# At the first start of compose's PostgreSQL: the role that owns Evergrant's tables, and Temporal's. Neither is a
# superuser; `init` makes those of the API, workers and gateways.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username postgres --dbname postgres <<'END'
\set evergrant `cat /run/evergrant/database-password`
\set temporal `cat /run/evergrant-temporal/database-password`
CREATE ROLE evergrant LOGIN CREATEROLE PASSWORD :'evergrant';
CREATE DATABASE evergrant OWNER evergrant;
CREATE ROLE temporal LOGIN CREATEDB PASSWORD :'temporal';
END
