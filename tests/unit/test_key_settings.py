"""Settings: each has one role, and of those written as pairs nothing is dropped silently."""

from pathlib import Path

import pytest

from shared.config import RoleSettings, Settings, load_settings
from shared.errors import ConfigurationError
from shared.vocabulary import KeyScope


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_setting_belongs_to_one_role_and_has_the_name_of_its_variable() -> None:
    roles = [
        type_
        for type_ in Settings.__mro__
        if issubclass(type_, RoleSettings) and type_ is not RoleSettings
    ]
    owners: dict[str, list[str]] = {}
    for role in roles:
        assert role.__doc__, role.__name__
        assert role.model_config["env_prefix"] == "SLUICE_"
        for name in set(role.__annotations__) & set(Settings.model_fields):
            owners.setdefault(name, []).append(role.__name__)
    assert set(owners) == set(Settings.model_fields)
    assert {name: of for name, of in owners.items() if len(of) > 1} == {}
    assert [name for name, of in owners.items() if of == ["Settings"]] == ["log_level"]


def keys(value: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    monkeypatch.setenv("SLUICE_API_KEYS", value)
    return [(name, secret.get_secret_value()) for name, secret in load_settings().api_secrets]


def test_a_name_may_have_two_secrets_while_one_replaces_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert keys("team:old, other:o:ther ,team:new", monkeypatch) == [
        ("team", "old"),
        ("team", "new"),
        ("other", "o:ther"),
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("ann:same-secret,bob:same-secret", "'ann' and 'bob' have the same secret"),
        ("ann:same-secret,ann:same-secret", "'ann' has the same secret twice"),
        (":same-secret", "must read"),
        ("ann:", "must read"),
        ("same-secret", "must read"),
        ("ann: ,bob:same-secret", "must read"),
    ],
)
def test_what_cannot_be_meant_is_refused_without_showing_it(
    value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        keys(value, monkeypatch)
    assert "SLUICE_API_KEYS" in refused.value.message
    assert words in refused.value.message
    assert "same-secret" not in refused.value.message


def test_a_task_has_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_HF_MODELS", "summarization=a/b,fill-mask=c/d,summarization=e/f")
    with pytest.raises(ConfigurationError, match="'summarization' has two models"):
        load_settings()
    monkeypatch.setenv("SLUICE_HF_MODELS", "summarization=a/b,fill-mask=c/d")
    assert load_settings().hf_models == {"summarization": "a/b", "fill-mask": "c/d"}


@pytest.mark.parametrize(
    ("names", "limit", "per_key"),
    [("", 100, None), ("ann:a", 100, None), ("ann:a,bob:b", 100, 90), ("ann:a,bob:b", 2, 2)],
)
def test_the_share_of_one_key(
    names: str, limit: int, per_key: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_API_KEYS", names)
    monkeypatch.setenv("SLUICE_QUEUE_LIMIT_STEPS", str(limit))
    assert load_settings().steps_per_key == per_key
    monkeypatch.setenv("SLUICE_QUEUE_LIMIT_STEPS_PER_KEY", "7")
    assert load_settings().steps_per_key == 7


@pytest.mark.parametrize(
    "setting",
    [
        "SLUICE_HF_TRUST_REMOTE_CODE",
        "SLUICE_GENERATION_TRUST_REMOTE_CODE",
        "SLUICE_FETCH_ALLOW_PRIVATE",
        "SLUICE_API_ALLOW_ANONYMOUS",
    ],
)
def test_a_file_in_the_current_folder_gives_no_rights(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may be somebody else's: an archive, a clone."""
    (tmp_path / ".env").write_text(f"{setting.lower()}=true\nSLUICE_API_PORT=8123\n")
    with pytest.raises(ConfigurationError, match=setting):
        load_settings()
    monkeypatch.setenv(setting, "true")
    assert load_settings().api_port == 8123
    monkeypatch.delenv(setting)
    (tmp_path / ".env").write_text(f"{setting}=false\nSLUICE_API_PORT=8123\n")
    assert load_settings().api_port == 8123


def test_settings_made_in_code_read_no_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SLUICE_HF_TRUST_REMOTE_CODE=true\n")
    assert Settings(_env_file=None).hf_trust_remote_code is False


def test_keys_have_the_scopes_that_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_API_KEYS", "viewer:one,bot:two,owner:three")
    monkeypatch.setenv("SLUICE_API_KEY_SCOPES", "viewer:read, bot:ask + write")
    assert load_settings().api_key_scopes == {
        "viewer": {KeyScope.READ},
        "bot": {KeyScope.ASK, KeyScope.WRITE},
    }


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("viwer:read", "names 'viwer', which is no key of SLUICE_API_KEYS"),
        ("viewer:look", "scopes are read, ask, write, admin"),
        ("viewer", "must read 'name:read,name:ask"),
        ("viewer:read,viewer:ask", "names 'viewer' twice"),
        ("viewer:", "must read"),
    ],
)
def test_scopes_that_would_not_hold_are_refused(
    value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_API_KEYS", "viewer:a-secret")
    monkeypatch.setenv("SLUICE_API_KEY_SCOPES", value)
    with pytest.raises(ConfigurationError, match=r"^SLUICE_API_KEY_SCOPES: ") as refused:
        load_settings()
    assert words in str(refused.value)
    assert "a-secret" not in str(refused.value)
