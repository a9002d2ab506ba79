"""The chat template given to a base model that has none.

    <system text>

    User: <question>
    Assistant: <answer><eos>
    User: ...

It is ordinary Jinja, stored with the tokenizer, so that stock tools render the same text. The generation prompt ends
at "Assistant:" without a space, because byte-pair vocabularies hold " word" as one token: a prompt that ended in a
space would be tokenized unlike the training text. The end-of-sequence token closes each answer, so the model learns
to stop. A BOS token stands in front only where the tokenizer itself would put one before a text.
"""

_TURNS = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token + '\\n' }}"
    "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] + '\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

PLAIN_TEMPLATE = _TURNS
"""For a tokenizer that puts nothing before a text."""

PLAIN_TEMPLATE_WITH_BOS = "{{ bos_token }}" + _TURNS
"""For a tokenizer that puts BOS before a text."""


def plain_template(*, with_bos: bool) -> str:
    """The plain template as a Jinja string."""
    return PLAIN_TEMPLATE_WITH_BOS if with_bos else PLAIN_TEMPLATE


def is_plain_template(template: str) -> bool:
    """Whether `template` is ours, perhaps read back from a saved tokenizer."""
    return template in (PLAIN_TEMPLATE, PLAIN_TEMPLATE_WITH_BOS)
