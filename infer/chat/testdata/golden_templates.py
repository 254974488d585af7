"""Conversations rendered by Transformers' own way of rendering templates: templates.jsonl of (name, template, options, input, text or error).

usage: golden_templates.py OUT      (transformers 5.24, jinja2 3.1.6)
"""
import json, sys
from transformers.utils.chat_template_utils import render_jinja_template
IM = "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}{{- \"# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided with function signatures within <tools></tools> XML tags:\\n<tools>\" }}{%- for tool in tools %}{{- \"\\n\" }}{{- tool | tojson }}{%- endfor %}{{- \"\\n</tools><|im_end|>\\n\" }}{%- else %}{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}{%- endif %}\n"
QWEN3 = IM + """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
LLAMA = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
ODD = """{% for m in messages %}
  {% if m.role == 'system' %}
    {% continue %}
  {% endif %}
  {% generation %}
{{ m.content }}|{{ m | tojson }}
  {% endgeneration %}
  {# a comment #}
  {% if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}
{{ tools | tojson }} {{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ missing }}
{{ messages[-1]['content'] | replace('a', 'b') | upper }} {{ "%s-%d" | format("x", 3) if false else 'no' }} {{ [1, 2.5, none, true, "<&>'é"] | tojson }}
{% macro f(x, y=2) %}[{{ x }}:{{ y }}]{% endmacro %}{{ f(1) }}{{ f(1, y=3) }} {{ {"a": 1, "b": [1]} }} {{ none }} {{ true }}
"""
tools = [{"type": "function", "function": {"name": "weather", "description": "It's <hot> & \"cold\" é", "parameters": {"type": "object", "properties": {"zip": {"type": "string"}, "city": {"type": "string", "enum": ["a", "b"]}, "n": {"type": "number", "default": 1.0, "maximum": 1e20}}, "required": ["city"]}}}]
S, U, A = (lambda r: lambda c, **k: {"role": r, "content": c} | k)("system"), (lambda c: {"role": "user", "content": c}), (lambda c, **k: {"role": "assistant", "content": c} | k)
call = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"zip": "é<1>", "city": "x", "n": 2.0}}}]
chats = [[U("Hello a")], [S(" Be brief. "), U("Hi"), A("Yes.\n")], [U("a"), A("<think>\nhm\n</think>\n\nb"), U("c"), A("<think>\nso\n</think>\n\nd")],
         [S("s"), U("weather?"), A(None, tool_calls=call), {"role": "tool", "content": "{\"t\": 3}", "name": "weather", "tool_call_id": "c1"}, {"role": "tool", "content": "warm"}, A("Warm.")],
         [U("q"), A("r", reasoning_content="why"), U("t"), A("u", tool_calls=call + call)]]
with open(sys.argv[1], "w") as w:
    for name, t in [("qwen3", QWEN3), ("llama31", LLAMA), ("mistral", MISTRAL), ("odd", ODD)]:
        for c in chats:
            for ts in (None, tools):
                for gen, kw in ((False, {}), (True, {"enable_thinking": False})):
                    row = {"name": name, "template": t, "messages": c, "tools": ts, "add_generation_prompt": gen, "kwargs": kw}
                    try:
                        row["text"] = render_jinja_template([c], tools=ts, chat_template=t, add_generation_prompt=gen, bos_token="<s>", eos_token="</s>", **kw)[0][0]
                    except Exception as e:
                        row["error"] = str(e)
                    w.write(json.dumps(row, ensure_ascii=False) + "\n")
