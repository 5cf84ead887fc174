"""Settings come from the environment once, and say what is wrong with them."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from engine.ops import MAX_RANK
from engine.outcome import MAX_DIGITS, MAX_WORST
from service.settings import Limits, Settings, SettingsError, check_binding, secret


def test_nothing_set_listens_on_loopback():
    settings = Settings.from_environment({})
    assert settings == Settings()
    assert settings.host == "127.0.0.1"
    check_binding(settings, has_keys=False)


def test_every_kind_of_value_is_read():
    environ = {
        "SOFTGAUGE_HOST": "localhost",
        "SOFTGAUGE_PORT": "0",
        "SOFTGAUGE_DATA_DIR": "elsewhere",
        "SOFTGAUGE_WORKERS": "3",
        "SOFTGAUGE_ALLOWED_HOSTS": "one.example, two.example",
        "SOFTGAUGE_DATABASE_URL": "postgresql://db/softgauge",
        "SOFTGAUGE_DATABASE_PASSWORD_FILE": "secret",
        "SOFTGAUGE_ADMIN_KEY_FILE": "key",
        "SOFTGAUGE_RATE_SECONDS": "2.5",
        "SOFTGAUGE_MAX_DIGITS": "50",
        "SOFTGAUGE_WAIT_SECONDS": "0.5",
        "UNRELATED": "1",
    }
    settings = Settings.from_environment(environ)
    assert (settings.host, settings.port, settings.data_dir, settings.workers) == ("localhost", 0, Path("elsewhere"), 3)
    assert settings.allowed_hosts == ("one.example", "two.example")
    assert settings.database_url == "postgresql://db/softgauge"
    assert (settings.database_password_file, settings.admin_key_file) == (Path("secret"), Path("key"))
    assert settings.limits == Limits(max_digits=50, wait_seconds=0.5, rate_seconds=2.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("WORKERS", "0"),
        ("WORKERS", "two"),
        ("RATE_REQUESTS", "0"),
        ("WAIT_SECONDS", "nan"),
        ("WAIT_SECONDS", "inf"),
        ("MAX_BODY_BYTES", "-1"),
        ("AUDIT_LOGITS", "-1"),
        ("MAX_RANK", "0"),
        ("MAX_RANK", str(MAX_RANK + 1)),
        ("MAX_WORST", str(MAX_WORST + 1)),
        ("MAX_DIGITS", str(MAX_DIGITS + 1)),
    ],
)
def test_a_value_that_cannot_be_read_is_named(name, value):
    with pytest.raises(SettingsError, match=f"SOFTGAUGE_{name}='{value}'"):
        Settings.from_environment({f"SOFTGAUGE_{name}": value})


def test_a_limit_may_be_as_large_as_the_engines_and_no_larger():
    environ = {"SOFTGAUGE_MAX_RANK": MAX_RANK, "SOFTGAUGE_MAX_WORST": MAX_WORST, "SOFTGAUGE_MAX_DIGITS": MAX_DIGITS}
    limits = Settings.from_environment({name: str(most) for name, most in environ.items()}).limits
    assert limits == Limits(max_rank=MAX_RANK, max_worst=MAX_WORST, max_digits=MAX_DIGITS)
    with pytest.raises(SettingsError, match=f"must be at most {MAX_WORST}"):
        Settings.from_environment({"SOFTGAUGE_MAX_WORST": "100"})


def test_an_audit_is_on_and_can_be_switched_off():
    assert Limits().audit_logits > 0
    assert Settings.from_environment({"SOFTGAUGE_AUDIT_LOGITS": "0"}).limits == Limits(audit_logits=0)


def test_what_a_child_runs_does_not_come_from_the_environment():
    assert Settings.from_environment({"SOFTGAUGE_WORKER_COMMAND": "/bin/true"}) == Settings()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "softgauge.example"])
def test_another_address_than_loopback_needs_a_key(host):
    with pytest.raises(SettingsError, match="softgauge keys create"):
        check_binding(Settings(host=host), has_keys=False)
    check_binding(Settings(host=host), has_keys=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_none(host):
    check_binding(Settings(host=host), has_keys=False)


@pytest.mark.parametrize("text", [None, b"\xff"])
def test_a_secret_that_cannot_be_read_is_named(tmp_path, text):
    path = tmp_path / "key"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(SettingsError, match=r"SOFTGAUGE_ADMIN_KEY_FILE=.*cannot be read"):
        secret("admin_key_file", path)


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1
