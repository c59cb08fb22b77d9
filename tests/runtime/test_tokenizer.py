"""Text to tokens and back from files, streaming, chat templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optc.core.errors import InputError, UnsupportedError
from optc.runtime.tokenizer import Tokenizer, load_tokenizer

TEXT = "naïve 日本 \U0001f642\u200d\U0001f525 ok"


def edit(path: Path, **changes: object) -> None:
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**old, **changes}))


def test_text_survives_the_round_trip(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_the_end_token_is_known_and_not_shown(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert tokenizer.eos_ids == (256,)
    assert tokenizer.decode([*tokenizer.encode("hi"), 256]) == "hi"


def test_generation_config_adds_end_tokens(tokenizer_folder: Path) -> None:
    edit(tokenizer_folder / "generation_config.json", eos_token_id=[256, 258])
    assert load_tokenizer(tokenizer_folder).eos_ids == (256, 258)


def test_the_configuration_gives_end_tokens_where_nothing_else_does(tokenizer_folder: Path) -> None:
    edit(tokenizer_folder / "config.json", eos_token_id=258)
    assert load_tokenizer(tokenizer_folder).eos_ids == (256, 258)
    edit(tokenizer_folder / "generation_config.json", eos_token_id=257)
    assert load_tokenizer(tokenizer_folder).eos_ids == (256, 257)


def test_limits_stored_in_the_file_are_ignored(tokenizer_folder: Path) -> None:
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    edit(tokenizer_folder / "tokenizer.json", truncation=cut)
    assert len(load_tokenizer(tokenizer_folder).encode("a longer text")) == 13


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(token) for token in tokens), stream.finish()]


def test_streaming_shows_whole_characters_only(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    pieces = streamed(tokenizer, tokenizer.encode(TEXT))
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert "日" in pieces


def test_a_character_cut_off_at_the_end_is_left_out(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert "".join(streamed(tokenizer, tokenizer.encode("ok \U0001f642")[:-1])) == "ok "


def test_a_chat_is_rendered_with_the_models_template(tokenizer_folder: Path) -> None:
    template = (
        "{% for m in messages %}\n<user>{{ m['content'] | trim }}{{ eos_token }}{% endfor %}\n"
        "{% if add_generation_prompt %}<bot>{% endif %}"
    )
    (tokenizer_folder / "chat_template.jinja").write_text(template)
    found = load_tokenizer(tokenizer_folder).encode_chat([{"role": "user", "content": " hi "}])
    assert found[0] == 257
    assert found[-2:] == [256, 258]
    assert load_tokenizer(tokenizer_folder).decode(found) == "hi"


def test_a_list_of_templates_gives_the_default(tokenizer_folder: Path) -> None:
    rows = [{"name": "tools", "template": "no"}, {"name": "default", "template": "<bot>"}]
    edit(tokenizer_folder / "tokenizer_config.json", chat_template=rows)
    assert load_tokenizer(tokenizer_folder).encode_chat([]) == [258]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% include '/etc/passwd' %}", "loader"),
        ("{% for %}", "cannot be rendered"),
        ("{{ 1 / 0 }}", "division"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_a_template_that_reaches_for_more_is_refused(
    tokenizer_folder: Path, template: str, words: str
) -> None:
    (tokenizer_folder / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(tokenizer_folder)
    with pytest.raises(UnsupportedError, match=words):
        tokenizer.encode_chat([{"role": "user", "content": "x"}])


def test_no_template_and_no_tokenizer_are_said_clearly(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match="no chat template; run it without --chat"):
        load_tokenizer(tokenizer_folder).encode_chat([])
    with pytest.raises(UnsupportedError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_named(tokenizer_folder: Path, name: str) -> None:
    (tokenizer_folder / name).write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(InputError, match=name):
        load_tokenizer(tokenizer_folder)
