"""The chat format of the default model: its Jinja template, and the same rules in Python for the corpus."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
#: A piece of a document, and whether the model is trained to write it.
Part = tuple[str, bool]

TOOLS_HEAD = "These tools are at hand:\n<tools>"
TOOLS_TAIL = '\n</tools>\nTo use one, write:\n<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call>'


def _quoted(text: str) -> str:
    return "'" + text.replace("\n", "\\n") + "'"


TEMPLATE = f"""\
{{%- set has_system = messages and messages[0]['role'] == 'system' -%}}
{{%- if has_system or tools -%}}
{{{{- '<|im_start|>system\\n' -}}}}
{{%- if has_system -%}}{{{{- messages[0]['content'] -}}}}{{%- endif -%}}
{{%- if tools -%}}
{{%- if has_system -%}}{{{{- '\\n\\n' -}}}}{{%- endif -%}}
{{{{- {_quoted(TOOLS_HEAD)} -}}}}
{{%- for tool in tools -%}}{{{{- '\\n' -}}}}{{{{- tool | tojson -}}}}{{%- endfor -%}}
{{{{- {_quoted(TOOLS_TAIL)} -}}}}
{{%- endif -%}}
{{{{- '<|im_end|>\\n' -}}}}
{{%- endif -%}}
{{%- for message in messages -%}}
{{%- if message['role'] == 'system' -%}}
{{%- if not loop.first -%}}\
{{{{- '<|im_start|>system\\n' + message['content'] + '<|im_end|>\\n' -}}}}\
{{%- endif -%}}
{{%- elif message['role'] == 'assistant' -%}}
{{{{- '<|im_start|>assistant\\n' -}}}}
{{%- if message['content'] -%}}{{{{- message['content'] -}}}}{{%- endif -%}}
{{%- if message['tool_calls'] -%}}
{{%- for call in message['tool_calls'] -%}}
{{%- set function = call['function'] if call['function'] else call -%}}
{{%- if message['content'] or not loop.first -%}}{{{{- '\\n' -}}}}{{%- endif -%}}
{{{{- '<tool_call>\\n{{"name": "' + function['name'] + '", "arguments": ' -}}}}
{{%- if function['arguments'] is string -%}}{{{{- function['arguments'] -}}}}
{{%- else -%}}{{{{- function['arguments'] | tojson -}}}}{{%- endif -%}}
{{{{- '}}\\n</tool_call>' -}}}}
{{%- endfor -%}}
{{%- endif -%}}
{{{{- '<|im_end|>\\n' -}}}}
{{%- elif message['role'] == 'tool' -%}}
{{%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' -%}}\
{{{{- '<|im_start|>user' -}}}}\
{{%- endif -%}}
{{{{- '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' -}}}}
{{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' -%}}\
{{{{- '<|im_end|>\\n' -}}}}\
{{%- endif -%}}
{{%- else -%}}
{{{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- '<|im_start|>assistant\\n' -}}}}{{%- endif -%}}
"""


def to_json(value: object) -> str:
    """JSON as the template's `tojson` writes it."""
    return json.dumps(value, ensure_ascii=False)


def _call(function: Mapping[str, Any]) -> str:
    head = f'{{"name": "{function["name"]}", "arguments": '
    return f"<tool_call>\n{head}{to_json(function['arguments'])}}}\n</tool_call>"


def render(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[Part]:
    """A conversation as the template renders it, in parts; the model is trained only on what the assistant says."""
    parts: list[Part] = []
    head = "".join(str(m["content"]) for m in messages[:1] if m["role"] == "system")
    if tools:
        listed = "".join("\n" + to_json(t) for t in tools)
        head += ("\n\n" if head else "") + TOOLS_HEAD + listed + TOOLS_TAIL
    if head:
        parts.append((f"<|im_start|>system\n{head}<|im_end|>\n", False))
    for at, message in enumerate(messages):
        role, content = message["role"], message.get("content") or ""
        if role == "system":
            if at:
                parts.append((f"<|im_start|>system\n{content}<|im_end|>\n", False))
        elif role == "assistant":
            calls = [_call(call["function"]) for call in message.get("tool_calls", ())]
            text = "\n".join(([content] if content else []) + calls)
            parts += [("<|im_start|>assistant\n", False), (text + "<|im_end|>", True), ("\n", False)]
        elif role == "tool":
            first = messages[at - 1]["role"] != "tool"
            last = at + 1 == len(messages) or messages[at + 1]["role"] != "tool"
            text = ("<|im_start|>user" if first else "") + f"\n<tool_response>\n{content}\n</tool_response>"
            parts.append((text + ("<|im_end|>\n" if last else ""), False))
        else:
            parts.append((f"<|im_start|>{role}\n{content}<|im_end|>\n", False))
    return parts
