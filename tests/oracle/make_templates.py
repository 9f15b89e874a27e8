"""Chat templates of our own with the texts that transformers makes of them: `../data/templates/cases.json`.

    pip install transformers==5.24.0 jinja2==3.1.6
    python make_templates.py

Each case is a template, a conversation with what belongs to it, and the text, or that transformers refuses. The templates are
written for this: one for each thing that templates of models do, and some whole ones in the style of well-known families.
"""

import datetime
import json
import os
import re

from transformers.utils import chat_template_utils

NOW = datetime.datetime(2026, 3, 4, 15, 6, 7, 89012)
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Says the weather.\nOf a <city> & day", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Which \"one\""}, "days": {"type": "integer", "enum": [1, 2, 3]},
                                     "where": {"type": ["string", "null"], "default": None}}, "required": ["city"]}}}
CLOCK = {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}}

PLAIN = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße <b> & \"q\" 'x' {{ y }}\n"}]
TURNS = PLAIN + [{"role": "assistant", "content": "<think>\nHm?\n</think>\n\nWell. "}, {"role": "user", "content": "  And now?  "}]
CALLS = [
    {"role": "user", "content": "Weather in Paris?"},
    {"role": "assistant", "content": None, "reasoning_content": "A tool knows.", "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris é", "days": 2, "x": 1.0, "y": [1e16, None, True]}}},
        {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": {}}}]},
    {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "18 C"},
    {"role": "tool", "tool_call_id": "call_2", "name": "now", "content": "{\"h\": 7}"},
    {"role": "assistant", "content": "18 degrees."},
    {"role": "user", "content": "Thanks"},
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]}]
DOCUMENTS = [{"title": "T", "text": "Some <text>"}, {"title": "Ü", "text": "more"}]

# One expression or statement each.
SNIPPETS = """
{{ messages | tojson }}
{{ messages[1].content | tojson }}
{{ messages[1] | tojson(indent=2) }}
{{ messages[1] | tojson(ensure_ascii=True) }}
{{ {'b': [1, 2.0, 1e100, -0.5], 'a': {'z': none, 'y': true}} | tojson(sort_keys=true) }}
{{ {'b': 1, 'a': []} | tojson(separators=(',', ':')) }}
{{ [1, [2, {}], []] | tojson(indent=4) }}
{{ {'a': 1} | tojson(false, 1) }}
{{ {1: 'a', true: 'b', none: 'c', 1.5: 'd'} | tojson }}
{{ 'a\\u2028é\\x07\\t\\\\/' | tojson }}
{{ 'é🎉\\x7f' | tojson(ensure_ascii=true) }}
{{ nothing | tojson }}
{{ [1, 2] | tojson(indent='--') }}
{{ {'a': [1]} | tojson(indent=0) }}
{{ (1, 'a') | tojson }}
{{ none }}{{ true }}{{ false }}{{ nothing }}
{{ 1.0 }} {{ 1e16 }} {{ 1e-5 }} {{ 100000000000000000000 }} {{ 0.1 + 0.2 }} {{ 3 / 2 }} {{ 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 2 ** -1 }}
{{ [1, 'a', none, true, 1.5, "it's", {'k': [()]}] }}
{{ {'a': 1, 'b': {'c': 'd"e'}} }}
{{ (1, 2) }}{{ (1,) }}{{ () }}
{{ 'a' ~ 1 ~ none ~ 1.5 ~ [1] }}
{{ 'a' 'b' "c" }}
{{ 'ab' * 3 }}{{ '-' * 0 }}{{ [1] * 2 }}
{{ [1] + [2, 3] }}
{{ (messages + [{'role': 'x', 'content': 'y'}])[-1].role }}
{{ '%s and %d: %5.2f|%-4s|%04d|%x' % ('a', 7, 1.5, 'b', 3, 255) }}
{{ '%s' % 'a' ~ '%s' % none }}
{{ "%s, %s!" | format('Hello', 'you') }}
{{ '{} {1} {a}'.format(1, 2, a=3) if false else '{} {}'.format('x', 2) }}
{{ '{0}{1}{0} {name}'.format('a', 'b', name='c') }}
{{ '  a b '.strip() }}|{{ '  a '.lstrip() }}|{{ ' a  '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abc'.lstrip('ab') }}
{{ '\\x1c a \\x1f'.strip() }}|{{ '\\u00a0a'.strip() }}
{{ 'a,b,,c'.split(',') }}{{ ' a  b '.split() }}{{ 'a b c'.split(' ', 1) }}{{ 'a b c'.split(none, 1) }}{{ 'a b c d'.split(maxsplit=2) }}{{ 'a,b'.split(sep=',') }}
{{ 'a.b.c'.rsplit('.', 1) }}{{ ' a b c '.rsplit(none, 1) }}{{ 'abc'.rsplit('x') }}
{{ 'a\\nb\\r\\nc\\n'.splitlines() }}{{ 'a\\nb'.splitlines(true) }}{{ 'a\\nb\\n'.splitlines(keepends=True) }}
{{ 'a=b=c'.partition('=') }}{{ 'a=b=c'.rpartition('=') }}{{ 'abc'.partition('x') }}
{{ 'Hello World'.upper() }}{{ 'Hello'.lower() }}{{ 'hello wOrld'.title() }}{{ "they're".title() }}{{ 'hELLO'.capitalize() }}{{ 'Hello'.swapcase() }}{{ 'ß'.casefold() }}
{{ 'hello wOrld' | title }}{{ 'hELLO' | capitalize }}{{ 'a' | upper }}{{ 'A' | lower }}{{ "they're (x) <y> z-w" | title }}
{{ 'abcabc'.find('c') }}{{ 'abcabc'.rfind('c') }}{{ 'abc'.find('x') }}{{ 'éab'.find('b') }}{{ 'abcabc'.find('a', 1) }}{{ 'abcabc'.count('a') }}{{ 'aaa'.count('a', 1) }}{{ 'abc'.index('b') }}
{{ 'abc'.index('x') }}
{{ 'abc'.startswith('a') }}{{ 'abc'.startswith(('x', 'a')) }}{{ 'abc'.endswith('c') }}{{ 'abc'.startswith('b', 1) }}{{ 'abc'.endswith(('x', 'y')) }}
{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'x.py'.removesuffix('.py') }}{{ 'x'.removeprefix('y') }}
{{ '7'.zfill(3) }}{{ '-7'.zfill(4) }}{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '*') }}|{{ 'a'.center(4) }}|{{ 'ab'.center(5, '-') }}|{{ 'a\\tb'.expandtabs(4) }}
{{ 'abc'.isdigit() }}{{ '12'.isdigit() }}{{ 'ab1'.isalnum() }}{{ 'ab'.isalpha() }}{{ ''.isalpha() }}{{ 'AB'.isupper() }}{{ ' '.isspace() }}{{ 'Ab Cd'.istitle() }}{{ 'a_1'.isidentifier() }}{{ 'é'.isascii() }}
{{ 'aXbXc'.replace('X', '-') }}{{ 'aXbXc'.replace('X', '-', 1) }}{{ 'abc' | replace('b', 'x') }}
{{ ', '.join(['a', 'b']) }}{{ ['a', 1, 1.5, none] | join('|') }}{{ messages | map(attribute='role') | join(',') }}
{{ 'abc'[0] }}{{ 'abc'[-1] }}{{ 'abcdef'[1:3] }}{{ 'abcdef'[::-1] }}{{ 'abcdef'[::2] }}{{ 'abcdef'[-2:] }}
{{ messages[::-1] | map(attribute='role') | list }}{{ messages[1:] | length }}{{ messages[:-1][0].role }}{{ messages[5:] }}
{{ messages[1:][0].role }}{{ (messages | list)[0].role }}{{ messages | length }}{{ messages | count }}
{{ {'b': 1, 'a': 2}.items() | list }}{{ {'b': 1}.keys() | list }}{{ {'b': 1}.values() | list }}{{ {'b': 1}.get('b') }}{{ {'b': 1}.get('x') }}{{ {'b': 1}.get('x', 7) }}
{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}={{ v }}{% if not loop.last %}, {% endif %}{% endfor %}
{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}={{ v }};{% endfor %}{% for k, v in {'b': 1, 'a': 2} | items %}{{ k }}{% endfor %}
{% for k in {'b': 1, 'a': 2} %}{{ k }}{% endfor %}{{ {'b': 1, 'a': 2} | length }}{{ 'b' in {'b': 1} }}{{ {'x': 1} | list }}
{{ {'items': 1}['items'] }}{{ {'b': {'c': [1, 2]}}.b.c[1] }}{{ {'b': 1}['x'] is defined }}{{ {'b': 1}.x is defined }}
{{ dict(a=1, b='x') }}{{ dict({'a': 1}, b=2) }}
{% set d = {'a': 1} %}{% set _ = d.update({'b': 2}) %}{{ d }}
{% set l = [1] %}{% set _ = l.append(2) %}{{ l }}
{{ [3, 1, 2] | sort }}{{ ['b', 'A', 'c'] | sort }}{{ [1, 2, 3] | reverse | list }}{{ [1, 1, 2] | unique | list }}{{ [1, 2] | first }}{{ [1, 2] | last }}{{ [1, 2, 3] | sum }}{{ [1, 3] | max }}{{ [1, 3] | min }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | rejectattr('role', '==', 'user') | map(attribute='role') | first }}{{ [1, none, 0, 2] | select | list }}{{ [1, 2, 3] | reject('odd') | list }}
{{ messages | selectattr('tool_calls', 'defined') | list | length }}{{ messages | selectattr('role', 'in', ['user', 'x']) | list | length }}{{ messages | map(attribute='name', default='-') | join }}
{{ [1, 2, 3, 4, 5] | batch(2) | list }}{{ [1, 2, 3] | slice(2) | list }}{{ messages | groupby('role') | map(attribute='grouper') | list }}
{{ ' a ' | trim }}|{{ 'xax' | trim('x') }}|{{ none | trim }}|{{ nothing | trim }}|{{ 7 | trim }}
{{ none | upper }}{{ nothing | upper }}{{ nothing | length }}{{ nothing | default('d') }}{{ '' | default('d', true) }}{{ none | default('d') }}{{ '' | default('d', boolean=true) }}
{{ nothing | join(',') }}{{ nothing | list }}{{ nothing | first is defined }}
{{ 'a' | string }}{{ 1.0 | string }}{{ none | string }}{{ [1, 'a'] | string }}{{ '3' | int + 1 }}{{ 'x' | int(9) }}{{ '1.5' | float }}{{ 2.6 | round }}{{ 2.567 | round(2) }}{{ -3 | abs }}
{{ 'a b  c' | wordcount }}{{ 'a' | center(5) }}|{{ 'line one\\nline two' | indent(2) }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\n\\nb' | indent(2, blank=true) }}|{{ 'a\\nb' | indent('> ') }}
{{ 'abcdefghij klm' | truncate(9) }}{{ '<b>x</b>  y' | striptags }}{{ 'x' | e }}{{ '<x>' | e }}{{ '<x>' | safe }}
{{ 'a' is string }}{{ 1 is number }}{{ 1.5 is float }}{{ 1 is integer }}{{ true is integer }}{{ true is boolean }}{{ none is none }}{{ nothing is undefined }}{{ messages is defined }}
{{ 'a' is sequence }}{{ [1] is sequence }}{{ {} is sequence }}{{ 1 is sequence }}{{ 'a' is iterable }}{{ {} is iterable }}{{ 1 is iterable }}{{ {} is mapping }}{{ [] is mapping }}{{ nothing is iterable }}{{ none is iterable }}
{{ messages[0] is mapping }}{{ messages[0].content is string }}{{ messages is sequence }}{{ messages[1:] is sequence }}{{ range(3) is sequence }}{{ messages is mapping }}
{{ 2 is even }}{{ 2 is odd }}{{ 6 is divisibleby 3 }}{{ 'a' is lower }}{{ 'A' is upper }}{{ 1 is sameas 1 }}{{ 1 is eq 1 }}{{ 1 is ne 2 }}{{ 1 is lt 2 }}{{ 1 is in [1] }}{{ true is true }}{{ 1 is true }}{{ range is callable }}{{ 'a' is callable }}
{{ 'x' in 'xyz' }}{{ 'x' not in 'abc' }}{{ 1 in [1] }}{{ 'role' in messages[0] }}{{ 'x' in nothing }}
{{ 'x' in none }}
{{ 1 == 1.0 }}{{ 'a' == 'a' }}{{ none == nothing }}{{ nothing == nothing2 }}{{ [1] == [1] }}{{ {'a': 1} == {'a': 1} }}{{ 1 < 2 < 3 }}{{ 'a' < 'b' }}{{ not 1 }}{{ 1 and 2 }}{{ 0 or 'x' }}{{ none or 'y' }}
{{ 'yes' if messages else 'no' }}{{ 'x' if false }}{{ ('a' if false else 'b') ~ 'c' }}
{{ nothing.attribute }}
{{ nothing['item'] }}
{{ nothing + 'a' }}
{{ 'a' + 1 }}
{{ none + 'a' }}
{{ messages[7].role }}
{{ messages[0].role.nothing.more }}
{{ nothing() }}
{{ messages[0].nothing }}|{{ messages[0]['nothing'] }}|{{ messages[9] }}
{{ raise_exception('no: ' ~ messages[0].role) }}
{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}fine
{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %b %Y') }} {{ strftime_now('%A, %-d. %B %H:%M:%S %p %j %y %f %%') }}
{% set ns = namespace(n=0, l=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.l = ns.l + [m.role] %}{% endfor %}{{ ns.n }}{{ ns.l }}
{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}
{% set x %}a{{ messages[0].role }}b{% endset %}[{{ x | upper }}]
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, d) = [3, 4] %}{{ c }}{{ d }}
{% macro f(x, y='d', z=none) -%} [{{ x }}{{ y }}{{ z }}] {%- endmacro %}{{ f(1) }}{{ f(1, z=2) }}{{ f(y=3, x=4) }}{{ f() }}
{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}
{% macro outer() %}<{{ caller() }}>{% endmacro %}{% call outer() %}in{% endcall %}
{% macro g() %}{{ late }}{% endmacro %}{% set late = 'L' %}{{ g() }}
{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}
{% filter upper %}a{{ 'b' }}{% endfilter %}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}
{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('a', 'b') }};{% endfor %}
{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}>{{ loop.nextitem.role if loop.nextitem is defined }};{% endfor %}
{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.role }}{% else %}none{% endfor %}{% for m in [] %}x{% else %}empty{% endfor %}
{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for i in range(2, 10, 3) %}{{ i }}{% endfor %}{{ range(3) | list }}{% for c in 'abc' %}{{ c }}.{% endfor %}{{ range(10)[2:4] | list }}
{% for x in [[1, [2, 3]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}
{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for m in messages %}{% generation %}{{ m.content | trim }}{% set inner = 1 %}{% endgeneration %}{{ inner is defined }}{% endfor %}
a {%- generation -%} b {%- endgeneration -%} c
{% if true %}{% generation %}x{% endgeneration %}{% endif %}
{# a comment #}a{#- another -#} b
{% raw %}{{ raw }} {% generation %}{% endraw %}
{{ '{{ a }}' }}{{ "{% b %}" }}{{ '#}' }}
{{ 'a\\nb\\t\\'c\\'' }}{{ "\\"" }}{{ '\\u00e9' }}{{ '\\\\n' }}
{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token is defined }}{{ add_generation_prompt }}{{ tools is none }}{{ tools is defined }}{{ documents is none }}
{{ messages | pprint | length > 10 }}{{ joiner is defined }}
{% set j = joiner(', ') %}{% for i in [1, 2] %}{{ j() }}{{ i }}{% endfor %}
{{ true and not false }}{{ 1 if true else 2 if false else 3 }}{{ (1 + 2) * 3 - -4 }}{{ not true == false }}{{ 'a' in 'abc' and 'b' not in 'xyz' }}
{{ [messages[0].role, 'b'][0] }}{{ ('a', 'b')[1] }}{{ {'a': 'x'}['a'] }}{{ [[1, 2], [3]][0][1] }}{{ [1, 2][5] is defined }}
{{ [1, 2, 3] | map('string') | join('-') }}{{ ['a', 'b'] | map('upper') | list }}{{ [' a '] | map('trim') | first }}{{ ['ab'] | map('replace', 'a', 'x') | list }}
{{ messages[1].content.split(' ')[0] }}{{ messages[1]['content'][:5] }}{{ messages[-1]['role'] }}{{ messages.0.role }}
{{ 10000000000 }}{{ 0x1F }}{{ 1_000 }}{{ 1.5e3 }}{{ -1 }}
{{ undefined_function is defined }}{{ loop is defined }}
{{ 'a' | default }}{{ nothing | default }}|{{ d | d('x') }}
{{ [{'n': 'b', 'v': 2}, {'n': 'a', 'v': 1}] | sort(attribute='n') | map(attribute='v') | list }}{{ [3, 1] | sort(reverse=true) }}{{ {'b': 2, 'a': 1} | dictsort(by='value') }}{{ {'b': 2, 'a': 1} | dictsort(reverse=true) }}
{{ messages[0] | length }}
{{ [0.1, 100.0, 1e22, 12345678901234567890] }}{{ {'a': 1.0} }}{{ [true, none] | string }}
{{ '' ~ 2.5 ~ [1.0] ~ {'a': none} }}
""".strip("\n").split("\n")

# Whole templates, in the style of families. Each is written here.
WHOLE = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "lines": """
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{% if system %}
[SYS]{{ system }}[/SYS]
{% endif %}
  {% for m in turns %}
    {% if m.role == 'user' %}
[INST] {{ m.content.strip() }} [/INST]
    {% elif m.role == 'assistant' and m.content is string %}
{{ m.content.split('</think>')[-1].lstrip('\\n') ~ eos_token }}
    {%- elif m.role == 'tool' %}
[TOOL {{ m.name | default('?') }}]{{ m.content }}[/TOOL]
    {%- endif %}
  {% endfor %}
""",
    "alternating": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate: user, assistant, user') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<S>>\\n' + system_message + '\\n<</S>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ '[I] ' + content.strip() + ' [/I]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "tools_json": """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n<tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <args>}\\n</tool_call><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi and message.role == "user" and message.content is string and not(message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.multi = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role }}
        {%- if loop.index0 > ns.last or reasoning %}{{- '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}{%- else %}{{- '\\n' + content }}{%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<r>\\n' }}{{- content }}{{- '\\n</r>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
""",
    "dated": "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{% if tools is not none %}T{{ tools | length }} {% for t in tools %}{{ t | tojson(indent=4) }}\n\n{% endfor %}{% endif %}Today: {{ date_string }}\n{% for m in messages %}<|h|>{{ m.role }}<|/h|>\n\n{% if 'tool_calls' in m %}{% set c = m.tool_calls[0].function %}{{ '{\"name\": \"' + c.name + '\", ' }}{{ '\"parameters\": ' }}{{ c.arguments | tojson }}{{ '}' }}{% else %}{{ m['content'] | trim }}{% endif %}<|eot|>{% endfor %}",
    "typescript": """
{%- macro type(spec) -%}
    {%- if spec.type == 'array' -%}{{ type(spec['items']) if spec['items'] else 'any' }}[]
    {%- elif spec.type is iterable and spec.type is not string -%}{{ spec.type | join(' | ') }}
    {%- elif spec.enum -%}{{ spec.enum | join(' | ') }}
    {%- else -%}{{ spec.type | default('any') }}{%- endif -%}
{%- endmacro -%}
{%- if tools -%}
namespace functions {
{% for tool in tools %}{% set f = tool.function %}
// {{ f.description | replace('\\n', ' ') }}
type {{ f.name }} = {%- if f.parameters and f.parameters.properties %} (_: {
{%- for name, spec in f.parameters.properties.items() %}
  {%- if spec.description %}

// {{ spec.description }}
  {%- endif %}

{{ name }}{% if name not in (f.parameters.required or []) %}?{% endif %}: {{ type(spec) }}{% if spec.default is defined %} // default: {{ spec.default }}{% endif %}{% if not loop.last %},{% endif %}
{%- endfor %}
}) => any;{% else %} () => any;{% endif %}

{% endfor %}
}
{%- endif %}
{% for m in messages %}{{ m.role }}: {{ m.thinking | default('-') }} {{ m.content }}
{% endfor %}""",
    "parts": "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% elif 'image' in c %}<image>{% endif %}{% endfor %}{% endif %}{% endfor %}",
    "documents": "{% for d in documents or [] %}Document {{ loop.index }}\nTitle: {{ d['title'] }}\n{{ d.text }}\n{% endfor %}{% for m in messages %}{% if loop.first %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}",
    "developer": "{% for m in messages %}{% if m.role in ['system', 'developer'] %}<|dev|>{{ m.content }}{% elif m.role == 'assistant' %}<|a|>{% generation %}{{ m.content }}{% endgeneration %}{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}",
    "xml": "{% for m in messages %}{{ m.role }}{% for c in m.tool_calls or [] %}{{ '<function=' + c.function.name + '>' }}{% for k, v in c.function.arguments | items %}<parameter={{ k }}>{{ v | tojson if v is mapping or (v is sequence and v is not string) else v | string }}</parameter>{% endfor %}</function>{% endfor %};{% endfor %}",
}


def render(template, messages, tools=None, documents=None, add_generation_prompt=True, continue_final_message=False, more=None):
    messages = chat_template_utils._normalize_chat_messages(messages)
    texts, _ = chat_template_utils.render_jinja_template(
        [messages], tools=tools, documents=documents, chat_template=template, add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message, **{**SPECIALS, **(more or {})})
    return texts[0]


def cases():
    for i, snippet in enumerate(SNIPPETS):
        yield dict(name=f"snippet {i + 1}", template=snippet, messages=PLAIN)
    conversations = {"plain": PLAIN, "turns": TURNS, "calls": CALLS, "no system": TURNS[1:], "parts": PARTS}
    for name, template in WHOLE.items():
        for kind, messages in conversations.items():
            yield dict(name=f"{name}: {kind}", template=template, messages=messages)
            yield dict(name=f"{name}: {kind}, tools", template=template, messages=messages, tools=[WEATHER, CLOCK],
                       documents=DOCUMENTS, add_generation_prompt=False, more={"enable_thinking": False, "bos_token": "<x>"})
        for kind, last in {"word": "I think", "spaces": "I think ", "lines": "Well\n\nI"}.items():
            messages = TURNS[:2] + [{"role": "assistant", "content": last}]
            yield dict(name=f"{name}: goes on, {kind}", template=template, messages=messages, add_generation_prompt=False,
                       continue_final_message=True)


class Now(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def main():
    chat_template_utils.datetime = Now
    out = []
    for case in cases():
        name = case.pop("name")
        try:
            text = {"text": render(**case)}
        except Exception as e:
            # `len` of a text that it shows changes from version to version: only that it is refused counts.
            text = {"refused": re.sub(r"\s+", " ", f"{type(e).__name__}: {e}")[:120]}
        out.append({"name": name, **case, **text})
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "templates", "cases.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump({"now": NOW.isoformat(), "specials": SPECIALS, "cases": out}, f, ensure_ascii=False, indent=1)
        f.write("\n")
    print(len(out), "cases,", sum("refused" in c for c in out), "refused")


if __name__ == "__main__":
    main()
