"""Chat templates of the usual kinds, short, to test the encoder with."""

CHATML_MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

CHATML_MARKED_WITHOUT_STOP = CHATML_MARKED.replace(
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}",
    "{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>\\n' }}",
)

# As SmolLM3: the header and the newline after the stop token lie inside the block.
CHATML_MARKED_WITH_HEADER = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ '<|im_start|>assistant\\n' + message['content'] + '<|im_end|>\\n' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

LLAMA3 = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n\\n' }}{% endif %}"
)

LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}"
    "{% else %}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}{% endif %}{% endfor %}"
)

GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n'"
    " + message['content'] | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}"
)

# As Qwen3: the last answer gets a think block, empty if it has none; earlier answers lose theirs.
QWEN3 = (
    "{% set ns = namespace(last=-1) %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% set content = message['content'] %}{% set thought = '' %}"
    "{% if message['role'] == 'assistant' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}"
    "{{ content.lstrip('\\n') }}{% else %}{{ content }}{% endif %}"
    "{% else %}{{ content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)

# As distilled reasoners: the generation prompt opens a think block that the rendered answers do not have.
OPENED_THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n'"
    " + message['content'].split('</think>')[-1] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)

# As gpt-oss: only the last answer ends with the final stop token.
TWO_STOPS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ '</s>' if loop.last and message['role'] == 'assistant' else '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# As Llama 3.2: the system text names today's date.
DATED = (
    "{% if strftime_now is defined %}{% set day = strftime_now(\"%d %b %Y\") %}{% else %}{% set day = 'Jul 2024' %}"
    "{% endif %}{{ '<|im_start|>system\\nToday: ' + day + strftime_now( '/%Y-%m-%d' ) + '<|im_end|>\\n' }}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# No token ends a turn that another follows.
OPEN_INNER_TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '\\n' }}"
    "{{ '<|im_end|>' if loop.last and message['role'] == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# The same, with a token of its own for each role and a BOS before all.
OPEN_INNER_TURNS_BY_ROLE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' if message['role'] == 'user' else 'Bot: ' }}"
    "{{ message['content'] + '\\n' }}{{ '<|im_end|>' if loop.last and message['role'] == 'assistant' else '' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Bot: ' }}{% endif %}"
)
