"""What models of the large families write, in their templates' formats: the answers that test_chat_templates.py parses."""

from __future__ import annotations

from typing import Any, NamedTuple

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of the next days",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
NOW = {
    "type": "function",
    "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}},
}
PARIS = ("get_weather", {"city": "Paris"})
THREE = ("get_weather", {"city": "Paris", "days": 3})
TIME = ("now", {})


class Says(NamedTuple):
    """A parsed message for comparison, without the white space around its texts, which depends on the template."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()


def qwen(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


CITY = '{"city": "Paris"}'
HMM = "Hmm, Paris.\n"
CASES: dict[str, list[tuple[str, Says]]] = {
    "meta-llama-Llama-3.1-8B-Instruct": [
        ("It is <b>5 < 6</b> degrees.\n\nBye — é 🌞", Says("It is <b>5 < 6</b> degrees.\n\nBye — é 🌞")),
        ('{"name": "get_weather", "parameters": {"city": "Paris"}}', Says(calls=(PARIS,))),
    ],
    "meta-llama-Llama-3.2-3B-Instruct": [("Hello.", Says("Hello."))],
    "meta-llama-Llama-3.3-70B-Instruct": [
        ("Hello.", Says("Hello.")),
        ('{"name": "now", "parameters": {}}', Says(calls=(TIME,))),
    ],
    "Qwen-Qwen2.5-7B-Instruct": [
        ("Hello.", Says("Hello.")),
        (qwen("get_weather", '{"city": "Paris", "days": 3}'), Says(calls=(THREE,))),
        (f"Look:\n{qwen('get_weather', CITY)}\n{qwen('now', '{}')}", Says("Look:", calls=(PARIS, TIME))),
    ],
    "Qwen-Qwen3-0.6B": [
        ("Hello.", Says("Hello.")),
        (f"<think>\n{HMM}</think>\n\nHello.", Says("Hello.", HMM.strip())),
        (f"<think>\n{HMM}</think>\n\n{qwen('get_weather', CITY)}", Says("", HMM.strip(), (PARIS,))),
        (f"<think>\n{HMM}</think>\n\n{qwen('now', '{}')}\n{qwen('now', '{}')}", Says("", HMM.strip(), (TIME, TIME))),
    ],
    "Qwen-QwQ-32B": [
        (f"{HMM}</think>\n\nHello.", Says("Hello.", HMM.strip())),
        (f"{HMM}</think>\n\n{qwen('get_weather', CITY)}", Says("", HMM.strip(), (PARIS,))),
    ],
    "Qwen3-Coder": [
        ("Hello.", Says("Hello.")),
        (
            ("<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
            "</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>"),
            Says(calls=(THREE, TIME)),
        ),
    ],
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": [
        ("Hello.", Says("Hello.")),
        (f"{qwen('get_weather', CITY)}\n{qwen('now', '{}')}", Says(calls=(PARIS, TIME))),
    ],
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": [(qwen("get_weather", CITY), Says(calls=(PARIS,)))],
    "mistralai-Mistral-Nemo-Instruct-2407": [
        ("Hello.", Says("Hello.")),
        (
            (f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {CITY}, "id": "123456789"}}, '
            '{"name": "now", "arguments": {}, "id": "abcdefghi"}]'),
            Says(calls=(PARIS, TIME)),
        ),
    ],
    "Mistral-Small-3.2-24B-Instruct-2506": [("Hello.", Says("Hello."))],
    "mistralai-Ministral-3-14B-Reasoning-2512": [
        ("[THINK]Hmm.[/THINK]Hello.", Says("Hello.", "Hmm.")),
        (f"[TOOL_CALLS]get_weather[ARGS]{CITY}[TOOL_CALLS]now[ARGS]{{}}", Says(calls=(PARIS, TIME))),
        (f"[THINK]Hmm.[/THINK][TOOL_CALLS]get_weather[ARGS]{CITY}", Says("", "Hmm.", (PARIS,))),
    ],
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": [
        (f"{HMM}</think>\n\nHello.", Says("Hello.", HMM.strip())),
        (
            (f"{HMM}</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{CITY}\n```"
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
            Says("", HMM.strip(), (PARIS,)),
        ),
    ],
    "deepseek-ai-DeepSeek-V3.1": [
        ("Hmm.</think>Hello.", Says("Hello.", "Hmm.")),
        (
            (f"Hmm.</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{CITY}<｜tool▁call▁end｜>"
            "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
            Says("", "Hmm.", (PARIS, TIME)),
        ),
    ],
    "deepseek-ai-DeepSeek-V3.2": [
        (
            ('Hmm.</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
            '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
            "</｜DSML｜invoke>\n</｜DSML｜function_calls>"),
            Says("", "Hmm.", (PARIS,)),
        ),
    ],
    "openai-gpt-oss-120b": [
        ("<|channel|>final<|message|>Hello.", Says("Hello.")),
        (
            "<|channel|>analysis<|message|>Hmm.<|end|><|start|>assistant<|channel|>final<|message|>Hello.",
            Says("Hello.", "Hmm."),
        ),
        (
            ("<|channel|>analysis<|message|>Hmm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
            f"<|constrain|>json<|message|>{CITY}"),
            Says("", "Hmm.", (PARIS,)),
        ),
    ],
    "google-gemma-2-2b-it": [("Hello.", Says("Hello."))],
    "google-gemma-4-31B-it": [
        ("<|channel>thought\nHmm.\n<channel|>Hello.", Says("Hello.", "Hmm.")),
        ('<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>', Says(calls=(PARIS,))),
        (
            '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|><|tool_call>call:now{}<tool_call|>',
            Says(calls=(PARIS, TIME)),
        ),
    ],
    "microsoft-Phi-3.5-mini-instruct": [("Hello.", Says("Hello."))],
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": [
        ("<|START_RESPONSE|>Hello.<|END_RESPONSE|>", Says("Hello.")),
        (
            "<|START_THINKING|>Hmm.<|END_THINKING|><|START_RESPONSE|>Hello.<|END_RESPONSE|>",
            Says("Hello.", "Hmm."),
        ),
        (
            ('<|START_THINKING|>Hmm.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", '
            f'"parameters": {CITY}}},\n    {{"tool_call_id": "1", "tool_name": "now", "parameters": {{}}}}\n]<|END_ACTION|>'),
            Says("", "Hmm.", (PARIS, TIME)),
        ),
    ],
    "ibm-granite-granite-3.3-2B-Instruct": [("<think>Hmm.</think>Hello.", Says("Hello.", "Hmm."))],
    "ibm-granite-granite-4.0": [
        ("Hello.", Says("Hello.")),
        (f"{qwen('get_weather', CITY)}\n{qwen('now', '{}')}", Says(calls=(PARIS, TIME))),
    ],
    "GLM-4.6": [
        ("\n<think></think>\nHello.", Says("Hello.")),
        ("\n<think>Hmm.</think>\nHello.", Says("Hello.", "Hmm.")),
        (
            ("\n<think>Hmm.</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>"),
            Says("", "Hmm.", (THREE, TIME)),
        ),
    ],
    "moonshotai-Kimi-K2": [
        ("Hello.", Says("Hello.")),
        (
            (f"<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{CITY}"
            "<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
            "<|tool_calls_section_end|>"),
            Says(calls=(PARIS, TIME)),
        ),
    ],
    "Kimi-K2-Thinking": [
        ("<think>Hmm.</think>Hello.", Says("Hello.", "Hmm.")),
        (
            ("<think>Hmm.</think>Look:<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
            f"<|tool_call_argument_begin|>{CITY}<|tool_call_end|><|tool_calls_section_end|>"),
            Says("Look:", "Hmm.", (PARIS,)),
        ),
    ],
    "MiniMax-M2": [
        (f"{HMM}</think>\n\nHello.", Says("Hello.", HMM.strip())),
        (
            (f'{HMM}</think>\n\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
            '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>'),
            Says("", HMM.strip(), (THREE,)),
        ),
    ],
    "ByteDance-Seed-OSS": [
        ("<seed:think>Hmm.</seed:think>Hello.", Says("Hello.", "Hmm.")),
        (
            ("<seed:think>Hmm.</seed:think><seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n"
            "</function>\n</seed:tool_call>"),
            Says("", "Hmm.", (PARIS,)),
        ),
    ],
    "NVIDIA-Nemotron-Nano-v2": [
        (
            (f'{HMM}</think>\n<TOOLCALL>[{{"name": "get_weather", "arguments": {CITY}}}, '
            '{"name": "now", "arguments": {}}]</TOOLCALL>'),
            Says("", HMM.strip(), (PARIS, TIME)),
        ),
    ],
    "meetkai-functionary-medium-v3.2": [
        ("all\nHello.", Says("Hello.")),
        (f"get_weather\n{CITY}", Says(calls=(PARIS,))),
    ],
    "LFM2-8B-A1B": [
        ('<|tool_call_start|>[get_weather(city="Paris"), now()]<|tool_call_end|>', Says(calls=(PARIS, TIME))),
    ],
    "Apertus-8B-Instruct": [
        (f'<|tools_prefix|>[{{"get_weather": {CITY}}}, {{"now": {{}}}}]<|tools_suffix|>', Says(calls=(PARIS, TIME))),
    ],
}  # fmt: skip
