"""Renders chat templates with transformers; the results are the fixture of packages/models/src/chat-template.test.ts.

    python -m venv venv && venv/bin/pip install transformers==5.18.0 jinja2==3.1.6
    venv/bin/python tools/oracle/make-chat-template-goldens.py TEMPLATES

TEMPLATES is a folder with llama.cpp's models/templates/*.jinja. Only their names and what they render are stored.
"""
import datetime
import json
import os
import sys

import transformers.utils.chat_template_utils as utils

OUT = os.path.join(os.path.dirname(__file__), "../../packages/models/src/tokenizer/fixtures/chat-template-goldens.json")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "tide_table",
            "description": 'Times of high water in a harbour — "local" time, <HH:MM>',
            "parameters": {
                "type": "object",
                "properties": {
                    "harbour": {"type": "string", "description": "Name, e.g. Łeba or 青岛"},
                    "days": {"type": "integer", "default": 1},
                },
                "required": ["harbour"],
            },
        },
    }
]
CALL = {"id": "a1B2c3D4e", "type": "function", "function": {"name": "tide_table", "arguments": {"harbour": "青岛", "days": 2}}}
CONVERSATIONS = {
    "one turn": [{"role": "user", "content": "When is high water? "}],
    "system and turns": [
        {"role": "system", "content": "You answer in one line."},
        {"role": "user", "content": "Hello <you> & 'me'"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "  And now?\n"},
    ],
    "tools": [
        {"role": "user", "content": "High water in 青岛?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a1B2c3D4e", "name": "tide_table", "content": '{"high": ["04:12", "16:40"]}'},
        {"role": "assistant", "content": "At 04:12 and 16:40."},
        {"role": "user", "content": "Thank you"},
    ],
    "reasoning": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4", "reasoning_content": "Two and two are four."},
        {"role": "user", "content": "3 + 3?"},
    ],
}
FILES = [
    "Qwen-Qwen2.5-7B-Instruct.jinja",
    "Qwen-Qwen3-0.6B.jinja",
    "meta-llama-Llama-3.1-8B-Instruct.jinja",
    "meta-llama-Llama-3.2-3B-Instruct.jinja",
    "mistralai-Mistral-Nemo-Instruct-2407.jinja",
    "Mistral-Small-3.2-24B-Instruct-2506.jinja",
    "microsoft-Phi-3.5-mini-instruct.jinja",
    "deepseek-ai-DeepSeek-V3.1.jinja",
]
SOURCES = {
    "json": "{{ messages | tojson }}|{{ tools | tojson(indent=2) }}|{{ tools[0] | tojson(separators=(',', ':')) }}|"
    "{{ {'b': 1, 'a': [true, none, 1.5, 'é\\n\"']} | tojson(sort_keys=true, ensure_ascii=true) }}",
    "blocks": "  {% for message in messages %}\n    {% if loop.first %}\nfirst {% endif %}\n  {{ loop.index }}: {{ message.role }}\n"
    "{#- comment -#}\n  {% endfor %}\nend\n",
    "loops": "{% for message in messages %}{% if message.role == 'assistant' %}{% continue %}{% endif %}{{ message.content | trim }};"
    "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "namespace": "{% set ns = namespace(count=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.count = ns.count + 1 %}"
    "{% endif %}{% endfor %}{{ ns.count }}{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('ab') }}",
    "generation": "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
    "date": "{{ strftime_now('%d %b %Y, %A %B %H:%M') }} {{ 'yes' if date_string is defined else 'no' }} {{ bos_token }}{{ eos_token }}{{ pad_token }}",
    "filters": "{{ messages[0].content | upper }} {{ messages | map(attribute='role') | join(',') }} {{ messages | length }} "
    "{{ (messages | selectattr('role', 'equalto', 'user') | list)[0].content | length }} {{ messages[-1]['role'] }} "
    "{{ 'a,b'.split(',') | last }} {{ messages[1:] | length }} {{ 'yes' if missing is defined else 'no' }} {{ messages[0].none_such | default('d') }}",
    "values": "{{ true }} {{ none }} {{ missing }} {{ 1.0 }} {{ 2 }} {{ [1, none, 'a\"b', \"it's\", '\\n'] }} {{ messages[0] }} {{ messages[0] | string }} "
    "{{ 'x' ~ true ~ none ~ 1 }} {{ missing | trim }}{{ ('a', 2) }} {{ messages[-1].content is none }} {{ messages[1] }} {{ {'k': [false]} }}",
    "break": "{% for m in messages %}{{ m.role }}{% for n in messages %}{{ loop.index }}{% if loop.index == 2 %}!{% break %}{% endif %},{% endfor %}"
    "{% if m.role == 'assistant' %}({% continue %}){% endif %};{% else %}never{% endfor %}"
    "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}|{% for m in [] %}{% else %}empty{% endfor %}",
    "tools": "{% if tools is not none %}{{ tools | length }}{% else %}none{% endif %} {% if tools is defined and add_generation_prompt %}prompt{% endif %}",
}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 6, 9, 5, 7)


def main():
    utils.datetime = Clock
    cases = []
    sources = [(name, None, open(os.path.join(sys.argv[1], name), encoding="utf-8").read()) for name in FILES]
    sources += [(name, source, source) for name, source in SOURCES.items()]
    for name, inline, source in sources:
        for conversation, messages in CONVERSATIONS.items():
            tools = TOOLS if conversation == "tools" else None
            for prompt in [True, False]:
                try:
                    rendered, _ = utils.render_jinja_template(
                        conversations=[messages], tools=tools, chat_template=source, add_generation_prompt=prompt,
                        bos_token="<s>", eos_token="</s>",
                    )
                except Exception as error:  # stored so that the other side must fail too
                    cases.append({"name": name, "source": inline, "conversation": conversation, "prompt": prompt, "error": str(error)})
                    continue
                cases.append({"name": name, "source": inline, "conversation": conversation, "prompt": prompt, "text": rendered[0]})
    data = {"now": "2024-07-06T09:05:07", "tools": TOOLS, "conversations": CONVERSATIONS, "cases": cases}
    with open(OUT, "w", encoding="utf-8") as file:
        json.dump(data, file, ensure_ascii=False, indent=1)
        file.write("\n")
    print(len(cases), "cases,", sum("error" in case for case in cases), "errors,", os.path.getsize(OUT), "bytes")


main()
