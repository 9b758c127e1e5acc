"""PostgreSQL: passwords over loopback TCP only, a database and a role for Prefect and for MLflow each."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psycopg2
from psycopg2 import extensions, sql

from infra.stack.config import Config, write_private
from infra.stack.errors import ServiceError
from infra.stack.ports import LOOPBACK
from infra.stack.processes import postgres_runs_in
from infra.stack.service import Service, environment_for
from ssl_backdoor.errors import UserError

DATABASES = ("prefect", "mlflow")
_SUPERUSER = "postgres"
_DEBIAN = Path("/usr/lib/postgresql")
_AS_ANOTHER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")


def binary(name: str) -> str:
    """A program of PostgreSQL: from PATH, else of Debian's newest version.

    Raises:
        UserError: it is not installed.
    """
    found = shutil.which(name)
    if found is not None:
        return found
    installed = [path for path in _DEBIAN.glob("*/bin") if path.parent.name.isdecimal() and (path / name).is_file()]
    if not installed:
        raise UserError(f"PostgreSQL's {name} is not installed: apt-get install postgresql")
    return str(max(installed, key=lambda path: int(path.parent.name)) / name)


def check_installed() -> None:
    """See that PostgreSQL is there and may run.

    Raises:
        UserError: it is not, or this is root and the system gives no other identity.
    """
    binary("initdb")
    binary("postgres")
    if os.geteuid() == 0:
        refused = shutil.which("unshare") is None
        refused = refused or subprocess.run([*_AS_ANOTHER, "true"], capture_output=True, timeout=30).returncode != 0
        if refused:
            raise UserError("PostgreSQL does not run as root and unshare is refused here: run as an ordinary user")


def uri(config: Config, database: str, driver: str) -> str:
    """SQLAlchemy's address of ``database`` for its owner. Holds the password: environment only, never argv."""
    password = config.secrets[f"postgres_{database}_password"]
    return f"postgresql+{driver}://{database}:{password}@{config.address('postgres')}/{database}"


def _as_allowed(command: list[str]) -> list[str]:
    """PostgreSQL refuses root: a user namespace shows it another identity, with no more rights than before."""
    return [*_AS_ANOTHER, *command] if os.geteuid() == 0 else command


def _command(config: Config) -> list[str]:
    settings = {
        "listen_addresses": LOOPBACK,
        "port": config.ports["postgres"],
        "unix_socket_directories": "",
        "password_encryption": "scram-sha-256",
    }
    flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return _as_allowed([binary("postgres"), "-D", str(config.folder / "postgres"), *flags])


def _prepare(config: Config) -> None:
    """Make the data folder once; one that was left half made is made anew."""
    data = config.folder / "postgres"
    if data.exists():
        # PostgreSQL takes a killed server's lock for a live one's where its pid is a zombie's or a stranger's now.
        if not postgres_runs_in(config.folder):
            (data / "postmaster.pid").unlink(missing_ok=True)
        return
    fresh, password_file = config.folder / "postgres.new", config.folder / "run" / "postgres.password"
    shutil.rmtree(fresh, ignore_errors=True)
    write_private(password_file, config.secrets["postgres_password"] + "\n")
    command = [binary("initdb"), "-D", str(fresh), f"--username={_SUPERUSER}", f"--pwfile={password_file}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums"]
    try:
        done = subprocess.run(
            _as_allowed(command), env=environment_for(config, "postgres", {}), capture_output=True, cwd=config.folder
        )
    finally:
        password_file.unlink(missing_ok=True)
    if done.returncode != 0:
        raise ServiceError(f"initdb failed: {config.redact(done.stderr.decode(errors='replace').strip())}")
    fresh.rename(data)


def connect(config: Config, user: str, password: str, database: str) -> extensions.connection:
    """A connection in autocommit mode."""
    connection = psycopg2.connect(
        host=config.hosts.get("postgres", LOOPBACK),
        port=config.ports["postgres"],
        user=user,
        password=password,
        dbname=database,
        connect_timeout=5,
        sslmode="disable",
        gssencmode="disable",
    )
    connection.autocommit = True
    return connection


def _healthy(config: Config) -> bool:
    try:
        connection = connect(config, _SUPERUSER, config.secrets["postgres_password"], "postgres")
    except psycopg2.OperationalError:
        return False
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return bool(cursor.fetchone() == (1,))
    except psycopg2.Error:
        return False
    finally:
        connection.close()


def _finish(config: Config) -> None:
    """A role and a database for each server that needs one; no role reaches another's database.

    Raises:
        ServiceError: PostgreSQL refuses.
    """
    try:
        _make_databases(config)
    except psycopg2.Error as error:
        raise ServiceError(f"PostgreSQL refuses the databases: {config.redact(str(error).strip())}") from error


def _make_databases(config: Config) -> None:
    connection = connect(config, _SUPERUSER, config.secrets["postgres_password"], "postgres")
    try:
        with connection.cursor() as cursor:
            for name in DATABASES:
                _make_role(cursor, name, config.secrets[f"postgres_{name}_password"])
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(name)))
                cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
            cursor.execute("REVOKE ALL ON DATABASE postgres FROM PUBLIC")
    finally:
        connection.close()


def _make_role(cursor: extensions.cursor, name: str, password: str) -> None:
    cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,))
    if cursor.fetchone() is not None:
        return
    # The verifier, not the password, is sent: a failing statement lands in the server's log.
    verifier = extensions.encrypt_password(password, name, cursor.connection, "scram-sha-256")
    statement = sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {}")
    cursor.execute(statement.format(sql.Identifier(name), sql.Literal(verifier)))


SERVICE = Service(
    name="postgres",
    ports=("postgres",),
    needs=(),
    url=lambda config: config.address("postgres"),
    command=_command,
    environment=lambda config: {},
    healthy=_healthy,
    prepare=_prepare,
    finish=_finish,
    stop_signal=signal.SIGINT,  # "fast": open transactions are rolled back, nobody is waited for
    grace_s=30.0,
)
