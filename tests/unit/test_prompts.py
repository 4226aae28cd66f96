"""Prompt sets: the format, what is refused, and the hash that cache keys hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_harness.errors import PromptError
from gguf_harness.inputs.prompts import BUILT_IN, Message, Prompt, load_prompts

GOOD = """
[[prompt]]
id = "story"
text = "Once upon a time"

[[prompt]]
id = "chat"
messages = [{role = "system", content = "Be brief."}, {role = "user", content = "Hello"}]

[[prompt]]
id = "</script>"
text = ""
"""


def _write(folder: Path, content: str | bytes) -> Path:
    file = folder / "prompts.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_the_format(tmp_path: Path) -> None:
    prompts = load_prompts(_write(tmp_path, GOOD))
    assert prompts.name == "prompts.toml"
    assert prompts.prompts == (
        Prompt("story", "Once upon a time"),
        Prompt("chat", messages=(Message("system", "Be brief."), Message("user", "Hello"))),
        Prompt("</script>", ""),
    )
    assert prompts.to_json() == {"name": "prompts.toml", "sha256": prompts.sha256, "prompts": 3}


def test_a_chat_without_a_template_is_its_turns() -> None:
    chat = Prompt("chat", messages=(Message("user", "Hello"), Message("assistant", "Hi."), Message("user", "Bye")))
    assert chat.plain() == "user: Hello\n\nassistant: Hi.\n\nuser: Bye\n\nassistant:"
    assert Prompt("text", "as it is ").plain() == "as it is "


def test_the_built_in_set_is_varied() -> None:
    prompts = load_prompts()
    assert prompts.name == BUILT_IN
    assert len(prompts.prompts) == 24
    assert sum(bool(prompt.messages) for prompt in prompts.prompts) == 3
    longest = max(prompts.prompts, key=lambda prompt: len(prompt.plain()))
    assert longest.id == "long"
    assert 800 < len(longest.plain()) < 1200
    assert any("\u0600" < character < "\u06ff" for prompt in prompts.prompts for character in prompt.plain())
    assert all(prompt.plain().strip() for prompt in prompts.prompts)


def test_the_hash_is_of_the_prompts_and_not_of_the_layout(tmp_path: Path) -> None:
    plain = load_prompts(_write(tmp_path, GOOD)).sha256
    assert load_prompts(_write(tmp_path, GOOD + "\n# a comment\n")).sha256 == plain
    for old, new in [("Once", "Twice"), ('"story"', '"tale"'), ('"system"', '"user"'), ("Be brief.", "")]:
        assert load_prompts(_write(tmp_path, GOOD.replace(old, new))).sha256 != plain, old
    head, *tables = GOOD.split("[[prompt]]")
    turned = head + "".join(f"[[prompt]]{table}" for table in reversed(tables))
    assert load_prompts(_write(tmp_path, turned)).sha256 != plain


def _one(text: str) -> str:
    return f"[[prompt]]\n{text}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no prompts"),
        ("prompt = []", "has no prompts"),
        ("prompt = 3", "has no prompts"),
        ("prompt = [1]", "prompt 1 is 1, expected a table"),
        ("[[prompts]]\nid = 'a'", "unknown field 'prompts'.\n  Did you mean 'prompt'"),
        (b"[[prompt]]\nid = 'a'\ntext = '\xff'", "is not UTF-8 text: byte 0xff at offset 28, line 3"),
        (_one("id = 'a'\ntext ="), "is not TOML: .*line 3"),
        (_one("text = 'a'"), "prompt 1 has the id None, expected 1 to 80 printable characters"),
        (_one("id = ' '\ntext = 'a'"), "has the id ' '"),
        (_one('id = "a\\nb"\ntext = "a"'), r"has the id 'a\\nb'"),
        (_one(f"id = '{'x' * 81}'\ntext = 'a'"), "expected 1 to 80"),
        (_one("id = 'a'"), r"prompt 1 \('a'\) has neither text nor messages"),
        (_one("id = 'a'\ntext = 'x'\nmessages = []"), "has both text and messages"),
        (_one("id = 'a'\ntxt = 'x'"), r"\('a'\) has an unknown field 'txt'.\n  Did you mean 'text'"),
        (_one("id = 'a'\ntext = 3"), "text is 3, expected a string"),
        (_one("id = 'a'\nmessages = []"), r"messages are \[\], expected at least one"),
        (_one("id = 'a'\nmessages = ['x']"), "message 1 is 'x', expected role and content"),
        (_one("id = 'a'\nmessages = [{role = 'tool', content = 'x'}]"), "message 1 has the role 'tool'"),
        (_one("id = 'a'\nmessages = [{role = 'user'}]"), "message 1: content is None, expected a string"),
        (_one("id = 'a'\nmessages = [{role = 'user', content = 'x', name = 'y'}]"), "unknown field 'name'"),
        (_one("id = 'a'\ntext = 'x'") + _one("id = 'b'\ntext = 'x'") + _one("id = 'a'\ntext = 'y'"),
         "prompts 1 and 3 both have the id 'a'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(PromptError, match=f"(?s)Prompt set 'prompts.toml'.*{message}") as caught:
        load_prompts(_write(tmp_path, content))
    assert caught.value.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"missing\.toml' cannot be read: No such file"):
        load_prompts(tmp_path / "missing.toml")
