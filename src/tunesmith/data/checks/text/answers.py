"""Rules about answers that teach nothing: refusals, a chat assistant's phrases about itself, and bare addresses."""

from __future__ import annotations

import re

from tunesmith.data.checks.rules import TextRule, answers_of, excerpt
from tunesmith.data.records import Example

# ------------------------------------------------------------------------------------------- what an assistant says

_ASSISTANT = (
    r"(?:(?:large |text[- ]based |virtual |digital )?"
    r"(?:AI|artificial intelligence|language|machine learning|chat|text|computer)"
    r"[- ](?:(?:powered|based|language|text|digital|virtual) )?(?:model|assistant|chatbot|bot|system|program|tool)\b"
    r"(?! (?:manager|designer|engineer|developer|researcher|scientist|administrator|expert|trainer|user|analyst)s?\b)"
    r"|(?:AI|artificial intelligence|chatbot)"
    r"(?=[,.]| (?:I|and|so|but|that|developed|created|made|built|designed|trained|programmed)\b))"
)
_ASSISTANT_WITHOUT_NAME_IN_CHINESE = (
    r"(?:(?:AI|人工智能|语言|文本|文字型|聊天) ?(?:AI ?)?(?:语言)?(?:模型|助手|助理|程序|系统|机器人|AI)"
    r"|(?:虚拟|数字|智能)(?:助手|助理)|(?:AI|人工智能)(?=[，,。]|我|所以|因此|$))"
)
_ASSISTANT_IN_CHINESE = rf"(?:一?[个名款位种台])?[^。！？，,\n]{{0,8}}?{_ASSISTANT_WITHOUT_NAME_IN_CHINESE}"
_SORRY = (
    r"(?:i(?:['’]m| am) (?:\w+ )?(?:sorry|afraid)|(?:so |very |really )?sorry(?=[,.;:!–—-]| -| but| i | we | to say)"
    r"|(?:my )?(?:\w+ )?apologies|i (?:\w+ )?(?:apologi[sz]e|regret))\b(?! (?:to hear|about|for your))"
)
_JUST = "(?: just| only| merely| simply)?"
_SADLY = r"(?:(?:unfortunately|regrettably)\W{1,3})?"
_CANNOT = (
    r"(?:can ?not|can['’]?t|could(?: not|n['’]t)|(?:won['’]t|will not)(?: be able)?|unable|incapable"
    r"|(?:must|have to) decline|have no"
    r"|not (?:\w+ )?(?:able|capable|allowed|permitted|programmed|designed|equipped|comfortable|possible|have|willing"
    r"|in a position)"
    r"|(?:do(?:es)?|did)(?: not|n['’]t) (?:\w+ )?(?:have|possess|know|feel|provide|specify|give|include|contain|support"
    r"|understand)|have(?:n['’]t| not) (?:\w+ )?(?:provided|specified|given)|need (?:more|additional)"
    r"|need to (?:provide|specify)|(?:is|are|was)(?: not|n['’]t) (?:enough|sufficient|any|an?)|there (?:is|was|are) no"
    r"|without (?:more|additional|further|any))\b"
)
_TASK = (
    r"(?:assist|help (?:you )?with|provide|fulfil+|comply|complete|answer|generate|create|write|engage|support|process"
    r"|access|browse|view|open|see (?:the|any|your) (?:image|picture|photo|link|file)|retrieve|determine|identify"
    r"|predict|discuss|participate|perform|produce|translate|summari[sz]e|continue|offer|respond"
    r"|give (?:you|advice|medical|legal|instructions|an? (?:\w+ )?(?:answer|opinion))"
    r"|display|draw|play|search|find (?:the|any)|estimate|share"
    r"|recommend (?:an?|any|specific)|tell you (?:that|this)\b|verify|confirm|do (?:that|this))"
)
_RULES = r"(?:guidelines?|polic(?:y|ies)|programming|capabilit(?:y|ies)|abilit(?:y|ies)|expertise|knowledge)"
_OUT_OF_BOUNDS = (  # what stands in the way of an assistant
    rf"(?:(?:against|beyond|outside(?: of)?|violates?) (?:the scope of )?my (?:\w+ )?{_RULES}"
    rf"|my (?:\w+ )?{_RULES} (?:(?:do(?:es)?(?: not|n['’]t) (?:allow|permit|let|cover))|prohibits?|forbids?|prevents?)"
    r"|(?:inappropriate|not (?:appropriate|possible|right|ethical)|n['’]t (?:appropriate|possible)) for me to"
    r"|(?:not|n['’]t) something (?:that )?I(?: can| could|['’]m (?:able|allowed)| am (?:able|allowed)))\b"
)
_UNWILLING = (
    rf"(?:{_OUT_OF_BOUNDS}|(?:(?:not|n['’]t) going to|decline to|(?:must|have to) (?:refuse|pass)"
    rf"|violates? (?:our|the) (?:\w+ )?{_RULES})\b)"
)
_CANNOT_IN_CHINESE = (  # in both scripts
    r"(?:[无無]法|不能(?!不)|[没沒](?:有)?[办辦]?法|不可以|不便|不支持|不提供|不具[备備]|不知道|不清楚|不了解|不[会會]|[还還][没沒]"
    r"|[没沒]有(?:[权權]限|能力|足[够夠]|[实實]体|[给給]|提供|指定|告[诉訴])|未(?:能)?(?:提供|[给給]出|指定|知)"
    r"|[帮幫]不[了上]|做不[到了]|[办辦]不到|答不[了上出]|[无無]能[为為]力|拒[绝絕]|不[愿願]|超出|不在我)"
)
_TASK_IN_CHINESE = (
    r"(?:提供|回答|完成|协助|满足|生成|访问|执行|处理|查看|看到|打开|浏览|获取|判断|确定|评估|创建|创作|显示|搜索|讨论|参与"
    r"|支持|给出|选出|写出|帮助|发表|评论|确认|核实|[为為给給向帮幫]您|[帮幫](?:[到上]?你|[您你]?[上到]?忙))"
)

# ------------------------------------------------------------------------------------------------------------ refusals

_ENGLISH_REFUSALS = (
    # "I'm sorry, but I cannot ...", or the prompt says too little.
    rf"{_SORRY}[^\n]{{0,120}}?(?:\b{_CANNOT}|{_UNWILLING})",
    # "As an AI language model, I do not ...", "Unfortunately, I'm just an AI and can't ..."
    rf"(?:{_SORRY}\W{{1,3}}|{_SADLY})(?:but )?"
    rf"(?:as an? {_ASSISTANT}[^\n]{{0,60}}?\b(?:I|my|it(?: is|['’]s))\b"
    rf"|i(?:['’]m| am){_JUST} an? {_ASSISTANT})"
    rf"[^\n]{{0,80}}?\b(?:{_CANNOT}|do(?: not|n['’]t)\b|lack\b)",
    # "I cannot assist with ...", "Unfortunately, I am not able to ...", "I cannot and will not help with ..."
    rf"{_SADLY}i(?:['’]m| am)? (?:\w+ )?{_CANNOT}(?: in good conscience| and (?:will not|won['’]t|should not))?"
    rf" (?:to )?(?:\w+ly )?{_TASK}\b",
    rf"{_SADLY}i (?:do not|don['’]t) (?:\w+ )?have (?:access|the ability|the information (?:needed|necessary|required)"
    r"|(?:enough|sufficient|the (?:needed|necessary|required)) (?:information|context|details|data))",
    rf"{_SADLY}i (?:do not|don['’]t) (?:think|believe) (?:that )?i (?:can|should|could|am able to) {_TASK}\b",
    # "I must respectfully decline.", "I refuse to answer", "I'd rather not discuss it"
    r"i(?:['’]m going to| am going to| will|['’]ll)?(?: must| have to)? (?:\w+ly )?(?:decline|refuse)"
    r"(?:[.,](?=\s|$)| (?:this|that|your) (?:request|question|task)"
    r"| to (?:answer|assist|help with|provide|discuss|generate|write|respond|comply)\b)",
    rf"i(?:(?:['’]d| would) (?:rather|prefer) not|['’]m not going| am not going) (?:to )?{_TASK}\b",
    r"i(?: do not feel| don['’]t feel|['’]m not| am not) comfortable (?:with (?:this|that|your)"
    r"|(?:assist|help|provid|answer|discuss|writ|creat|generat|shar|giv|respond|engag|continu)ing)\b",
    # "My guidelines do not allow it", "That's not something I can help with", "It is against my programming"
    rf"{_SADLY}(?:(?:it|this|that|(?:do|answer|provid|writ|shar|giv)ing \w+"
    r"|(?:your|this|that) (?:request|question|task|topic))"
    rf"(?: would be| is| goes| falls|['’]s|(?=n['’]t)| isn?(?=n['’]t))? ?)?{_OUT_OF_BOUNDS}",
)
_CHINESE_REFUSALS = (
    r"(?:您好|喔不|哦|我|非常|十分|真的|真是|很|实在|深表|[，,！!。 ]){0,6}"
    r"(?:抱歉|[对對]不起|不好意思|[遗遺]憾|[请請]原[谅諒]|[请請]?[见見][谅諒]|恕(?!我?直))"
    rf"(?!听|给[您你]|让[您你])[^。！？!?\n]{{0,50}}?{_CANNOT_IN_CHINESE}",
    rf"(?:由于|因为|抱歉|[对對]不起|喔不|[，, ]){{0,4}}(?:我[只仅]?是|作为){_ASSISTANT_IN_CHINESE}"
    r"[^。！？!?\n]{0,20}?(?:我[^。！？!?\n]{0,12}?|[，,] ?)"
    r"(?:[无無]法|不能(?!不)|[没沒]有|不具[备備]|不[会會]|[并並]不|不可以|不可能)",
    r"(?:您好[，,！!。 ]{0,2}|根据[^。，,\n]{2,20}[，,]"
    r"|(?:由于|因为)?[您你]并?(?:没有|未)[^。！？\n]{2,30}?[，,](?:所以|因此)?)?"
    r"(?:恐怕)?我(?:暂时|目前|现在|恐怕|实在)?(?:[无無]法|不能|[没沒]有?[办辦]?法|不便|拒[绝絕])"
    rf"\w{{0,4}}?{_TASK_IN_CHINESE}",
    r"我不会(?:提供|回答|生成|协助|创作|撰写)",
    # "这个问题我无法回答", "您的请求超出了我的能力范围"
    r"(?:[这這][个個]?|对?此|该|[您你](?:提出?)?的)(?:问题|問題|请求|請求|要求|话题|话題|内容)?[，,]?"
    rf"(?:我?(?:恐怕|暂时|目前)?(?:[无無]法|不能|[没沒]有?[办辦]?法){_TASK_IN_CHINESE}|我[无無]能[为為]力|已?超出了?我的|不在我的)",
)
_OTHER_REFUSALS = (  # Spanish, Portuguese, French, Italian, German (in both orders), Russian, Japanese, Korean
    r"(?:lo siento|lamento|lamentablemente|disculpa)\b[^\n.]{0,40}?\bno (?:puedo|tengo|es posible|estoy)\b",
    r"(?:desculpe|sinto muito|lamento|infelizmente)\b[^\n.]{0,40}?\bnão (?:posso|consigo|tenho|é possível)\b",
    r"(?:(?:je suis )?(?:vraiment )?désolée?|je regrette|malheureusement)\b[^\n.]{0,40}?"
    r"\bje n(?:e (?:peux|suis|dispose)|['’]ai)\b",
    r"(?:mi dispiace|mi scuso|purtroppo)\b[^\n.]{0,40}?\bnon (?:posso|sono|ho)\b",
    r"(?:(?:es )?tut mir (?:sehr )?leid|entschuldigung|leider)\b[^\n.]{0,30}?"
    r"\b(?:kann ich|ich kann)\b[^\n.]{0,80}?\bnicht\b",
    r"(?:извините|простите|к сожалению|мне жаль|прошу прощения)\b[^\n.]{0,40}?\bя (?:не могу|не имею|не в состоянии)\b",
    r"(?:申し訳(?:ありません|ございません)|すみません|ごめんなさい)[^\n]{0,60}?"
    r"(?:できません|できかねます|お答えでき|わかりません)",
    r"(?:죄송합니다|죄송하지만|미안하지만|안타깝게도)[^\n]{0,60}?(?:수 없|수가 없|어렵습니다|못합니다)",
)
_REFUSAL = re.compile("|".join(_ENGLISH_REFUSALS + _CHINESE_REFUSALS + _OTHER_REFUSALS), re.IGNORECASE)
_BEFORE_THE_ANSWER = re.compile(r"(?:\s*<think>.*?</think>)?[\s\"'“「*_>#-]*", re.DOTALL)

_ASKED_FOR_A_TEXT = re.compile(
    r"translat|paraphras|rewrit|rephras|reword|proofread|grammar|edit (?:the|this)|correct (?:the|this)|role[- ]?play"
    r"|pretend|imagine|reply to|respond to|response to|apolog|declin|excuse|turn down|refus|polite"
    r"|\b(?:write|compose|draft|create|generate|craft|come up with|construct|make)\b.{0,60}?\b(?:e-?mail|letter|message"
    r"|text|note|reply|response|dialogue|conversation|script|poem|story|song|lyrics|speech|tweet|post|quote|sentence|monologue)"
    r"|翻译|译成|译为|改写|改成|润色|造句|扮演|模拟|假装|回复|回信|婉拒|拒绝|道歉|致歉|请假"
    r"|(?:写|编|拟|起草|创作|生成).{0,20}?(?:信|邮件|短信|消息|对话|诗|故事|台词|剧本|句子)",
    re.IGNORECASE | re.DOTALL,
)
_ABOUT_THE_TASK = re.compile(
    rf"\b(?:AI|language model|{_TASK}|artificial|programmed|provided?|given?"
    r"|specif\w+|information|request|(?:respectfully|must|have to) decline)\b"
    rf"|{_OUT_OF_BOUNDS}|人工智能|语言模型|机器人|提供"
    r"|生成|完成|协助|请求|回答|没有给|信息|内容|满足|[这那]样做|问题|话题|能力|帮助?您|[帮幫]不",
    re.IGNORECASE,
)
_HOLDS_A_REFUSAL = re.compile(
    r"sorry|apolog|can ?not|can['’]t|unable|抱歉|对不起|不好意思|无法|(?<!能)不能", re.IGNORECASE
)
_SPEAKS_FOR_OTHERS = re.compile(r"\b(?:we|our)\b|我们|咱们|本店|[本我]公司", re.IGNORECASE)


def _find_refusal(example: Example) -> str | None:
    answers = answers_of(example)
    if not answers:
        return None
    answer = answers[-1]
    opening = _BEFORE_THE_ANSWER.match(answer)
    found = _REFUSAL.match(answer, opening.end() if opening else 0)
    if not found or _is_asked_for(example, answer[found.start() : found.end() + 60]):
        return None
    return excerpt(answer, *found.span())


def _is_asked_for(example: Example, opening: str) -> bool:
    """Whether the prompt wants a text that may well begin as a refusal does: a mail that declines, a translation."""
    prompt = _last_prompt(example)
    if not _ASKED_FOR_A_TEXT.search(prompt):
        return False
    of_the_text = not _ABOUT_THE_TASK.search(opening) or _SPEAKS_FOR_OTHERS.search(opening)
    return bool(of_the_text or _HOLDS_A_REFUSAL.search(prompt))


def _last_prompt(example: Example) -> str:
    """What the last user message says; nothing for plain text."""
    return next((message.content for message in reversed(example.messages) if message.role == "user"), "")


REFUSALS = TextRule(
    name="refusals",
    what="have an answer that refuses or says that it cannot",
    remedy="write real answers, or leave the rows out: a model learns from a few of them to refuse",
    find=_find_refusal,
)
"""The last answer begins with a refusal, in English, Chinese or one of eight other languages.

Being sorry is none, nor is what comes later in an answer. Where the prompt asks for a letter, a dialogue, a translation
or the like, only an opening that speaks of the task or of an assistant counts.
"""

# --------------------------------------------------------------------------------------------------------- boilerplate

_BOILERPLATE_IN_ENGLISH = re.compile(
    rf"(?<![\"'“‘「])\b(?:as (?:an?|your)|being an?) {_ASSISTANT}(?=[^.!?\n]{{0,80}}?\b(?:I|me|my|it(?: is|['’]s))\b)"
    rf"|\b(?:since|because|given that) i(?:['’]m| am){_JUST} an? {_ASSISTANT}"
    rf"|\bi(?:['’]m| am){_JUST} an? {_ASSISTANT}[^.!?\n]{{0,60}}?\b(?:{_CANNOT}|do(?: not|n['’]t)\b)"
    rf"|\bi (?:{_CANNOT}|do not|don['’]t|am not)[^.!?\n]{{0,60}}? as an? {_ASSISTANT}(?=\s*[.,;!])"
    rf"|\bi(?:['’]m| am) not an? (?:human|person)\b[^.!?\n]{{0,20}}? an? {_ASSISTANT}"
    r"|\bas an? (?:virtual|digital) assistant, i (?:do not|don['’]t|am not|cannot|can['’]t|have no)\b"
    r"|\bmy (?:last )?(?:knowledge|training)(?: data)?"
    r"(?:[- ]cut[- ]?off| (?:was last updated|update|ends|is limited to|only (?:goes|covers|extends)|extends to))"
    r"|\bas of my (?:last|latest|most recent|current|knowledge|training)\b[^.!?\n]{0,30}?"
    r"(?:update|cut[- ]?off|training|data)"
    r"|\bi(?:['’]m| am) (?:ChatGPT|GPT-[34])|\bi was last (?:updated|trained) (?:in|on)\b"
    r"|\bi(?: was| am|['’]m| have been) [^.!?\n]{0,40}?(?:trained|created|developed|made) by OpenAI\b",
    re.IGNORECASE,
)
_DENIES_IN_CHINESE = r"(?:[没沒]有|[无無]法|不能(?!不)|不具[备備有]|不[会會]|[并並]不|[并並]非|不可能)"
_BOILERPLATE_IN_CHINESE = re.compile(
    rf"(?<![\"'“‘「《你您他她它])(?:作为|身为){_ASSISTANT_IN_CHINESE}(?=[^。！？!?\n]{{0,40}}?我(?!们))"
    rf"|(?:由于|因为)我[只仅]?是{_ASSISTANT_IN_CHINESE}"
    rf"|我(?:[只仅]|仅仅)?是(?:一?[个名款位种台])?{_ASSISTANT_WITHOUT_NAME_IN_CHINESE}[^。！？!?\n]{{0,15}}?{_DENIES_IN_CHINESE}"
    rf"|我(?:[只仅]|仅仅)?是一?[个名款位种台]{_DENIES_IN_CHINESE}[^。！？，,\n]{{1,8}}的{_ASSISTANT_WITHOUT_NAME_IN_CHINESE}"
    rf"|我(?:不是|并非)[^。！？!?\n]{{0,12}}是一?[个名款位种台]{_ASSISTANT_WITHOUT_NAME_IN_CHINESE}"
    r"|我是(?:一个|由)?\s?(?:ChatGPT|GPT-[34]|OpenAI)|我的(?:知识|训练数据)[^。！？\n]{0,8}?(?:截止|截至|更新|只到)"
    r"|(?:截至|截止)[到于]?我的?(?:知识|训练|最后|最近)",
    re.IGNORECASE,
)
_NAMELESS_INTRODUCTION = re.compile(
    rf"(?:\A|[.!?。！？\n])[\s*_]{{0,4}}(?-i:I)(?:['’]m| am){_JUST} an? {_ASSISTANT}"
    r"(?![^.!?\n]{0,120}(?:\b(?:named|called)\b|(?-i: (?:by|from|at|of|for) (?:the )?[A-Z])))"
    r"|(?:\A|[.!?。！？\n])\s{0,4}(?:[您你]好[，,！!]\s{0,4})?我[只仅]?是一?[个名款位种台](?:由人类[^。，,\n]{1,4}的)?"
    rf"{_ASSISTANT_WITHOUT_NAME_IN_CHINESE}(?![^。！？!?\n]{{0,60}}?(?:叫|名字|由(?!人类)|来自|公司|团队))",
    re.IGNORECASE,
)
_ASKS_WHO_IT_IS = re.compile(
    r"\b(?:you|your|yours|yourself|artificial|(?:chat|ro)?bots?|androids?|assistants?|machines?|computers?|models?"
    r"|introduc\w*|hello|hi|hey)\b|(?<![a-z])AI(?![a-z])|[你您]|人工智能|机器人|助手|助理|模型|介绍",
    re.IGNORECASE,
)
_TALK = "(?:dialog|conversation|script|chat|role[- ]?play|对话|脚本|剧本|台词|扮演)"
_ARTIFICIAL = r"(?:(?<![a-z])(?:AI|(?:chat|ro)?bots?|assistants?)(?![a-z])|机器人|人工智能|助手)"
_ASKED_FOR_A_TALK = re.compile(rf"{_TALK}.{{0,60}}?{_ARTIFICIAL}|{_ARTIFICIAL}.{{0,60}}?{_TALK}", re.IGNORECASE)
"""What asks for a talk with such a machine, which may well speak as one."""

# Every match holds one of these; to look for them first takes a tenth of the time.
_SIGNS_IN_ENGLISH = (
    " AI",
    "rtificial intel",
    "language model",
    "learning model",
    "puter program",
    "hatbot",
    "al assistant",
    "GPT",
    "OpenAI",
    "y knowledge",
    "y training",
    "y last ",
    "was last ",
    "of my ",
)
_SIGNS_IN_CHINESE = (
    "人工智能",
    "AI",
    "语言模型",
    "机器人",
    "助手",
    "助理",
    "GPT",
    "我的知识",
    "我的训练",
    "截止",
    "截至",
)


def _find_boilerplate(example: Example) -> str | None:
    for answer in answers_of(example):
        english = any(map(answer.__contains__, _SIGNS_IN_ENGLISH))
        chinese = not answer.isascii() and any(map(answer.__contains__, _SIGNS_IN_CHINESE))
        found = _BOILERPLATE_IN_ENGLISH.search(answer) if english else None
        if not found and chinese:
            found = _BOILERPLATE_IN_CHINESE.search(answer)
        if not found and (english or chinese) and not _may_introduce_itself(example):
            found = _NAMELESS_INTRODUCTION.search(answer)
        if found and not _ASKED_FOR_A_TALK.search(_last_prompt(example)):
            return excerpt(answer, *found.span())
    return None


def _may_introduce_itself(example: Example) -> bool:
    """Whether a prompt may want to hear who the model is; so for plain text, which has no prompt."""
    prompts = [message.content for message in example.messages if message.role == "user"]
    return not prompts or any(map(_ASKS_WHO_IT_IS.search, prompts))


BOILERPLATE = TextRule(
    name="boilerplate",
    what="hold phrases of a chat assistant about itself, such as 'as an AI language model'",
    remedy="remove the phrases, or write the answers anew",
    find=_find_boilerplate,
)
"""An answer speaks, anywhere, as an assistant of somebody else: as an AI, of its knowledge's end, as ChatGPT.

That the model says who it is ("I am an AI assistant made by ...") is no fault, nor is polite padding. "I am an AI that
helps people", without a name or a maker, is one where no prompt speaks to the model or about such things.
"""

# ----------------------------------------------------------------------------------------------------------- addresses

_ADDRESS = re.compile(
    r"!?\[[^\[\]\n]*\]\((?:https?://|www\.)[^\s()]*(?:\([^\s()]*\)[^\s()]*)*\)|(?:https?://|www\.)[^\s<>，。；、）】]+",
    re.IGNORECASE,
)
_ASKED_FOR_AN_ADDRESS = re.compile(
    r"\b(?:links?|urls?|uris?|web ?(?:site|page|address)e?s?|site|address|source|hyperlink|reference|where can)\b"
    r"|网址|链接|连接|网站|网页|地址|官网|出处|来源",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^[ \t]*\d{1,3}[.)、]", re.MULTILINE)


def _find_url_only(example: Example) -> str | None:
    for answer in answers_of(example):
        if "://" not in answer and "www." not in answer.lower():
            continue
        first = _ADDRESS.search(answer)
        rest = _BULLET.sub("", _ADDRESS.sub("", answer))
        if first and not any(map(str.isalnum, rest)):
            prompts = "\n".join(message.content for message in example.messages if message.role == "user")
            return None if _ASKED_FOR_AN_ADDRESS.search(prompts) else excerpt(answer, *first.span())
    return None


URL_ONLY = TextRule(
    name="url_only",
    what="have an answer of nothing but web addresses",
    remedy="put what stands at the address into the answer, or leave the rows out",
    find=_find_url_only,
)
"""An answer of one or more addresses and punctuation, unless the prompt asks for a link, a site or the like."""
