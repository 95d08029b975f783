"""Texts of the demo corpus: sentences for every emotion, and sentences whose words carry an
emotion.

Mandarin sentences are written with blanks between words, so that word times can be told; the
transcript has none. Russian sentences avoid forms that depend on the speaker's sex.
"""

from __future__ import annotations

import re
from typing import Final

from raysere.demo.espeak import Mark, Speech

SHARED: Final = "shared"

TEXTS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "en": {
        SHARED: (
            "The letter is on the kitchen table.",
            "They will be here in seven hours.",
            "She put the bags next to the door.",
            "We are going to the station now.",
            "The bus stops in front of the house.",
            "He told me about it this morning.",
            "I will call you after dinner.",
            "My brother is coming tomorrow.",
            "You can see the river from here.",
            "The children are in the garden.",
        ),
        "anger": (
            "Stop lying to me, I have had enough.",
            "This is unfair and you know it.",
            "Get out of my room right now.",
            "I hate it when you shout at me.",
            "How dare you read my letters.",
            "You broke it again, this is outrageous.",
            "I am furious about this stupid rule.",
        ),
        "happiness": (
            "What a wonderful surprise, thank you.",
            "I am so glad that you are here.",
            "We won the game, this is great.",
            "I love this song, it is beautiful.",
            "Hooray, the holidays begin today.",
            "That is the best news of the year.",
            "Thank you, I am so happy today.",
        ),
        "neutral": (
            "The meeting starts at ten in room four.",
            "The report has twelve pages and a table.",
            "Please write your name on the form.",
            "The train leaves from platform two.",
            "The shop is open until six.",
            "The form has to be signed twice.",
            "The file is in the second folder.",
        ),
        "sadness": (
            "I miss her so much since she died.",
            "I feel so lonely in this empty house.",
            "We lost everything in the fire.",
            "He left me and never came back.",
            "I cannot stop crying today.",
            "It hurts to say goodbye forever.",
            "My old dog died last night.",
        ),
    },
    "cmn": {
        SHARED: (
            "信 在 厨房 的 桌子 上。",
            "他们 七 点 到 这里。",
            "她 把 包 放 在 门 旁边。",
            "我们 现在 去 车站。",
            "公共汽车 停 在 房子 前面。",
            "他 早上 跟 我 说 了 这 件 事。",
            "晚饭 后 我 给 你 打 电话。",
            "我 哥哥 明天 来。",
            "从 这里 可以 看到 河。",
            "孩子 们 在 花园 里。",
        ),
        "anger": (
            "别 再 骗 我 了，我 受够 了。",
            "这 太 不 公平 了，你 知道。",
            "马上 从 我 房间 滚 出去。",
            "我 最 讨厌 你 对 我 大喊。",
            "你 怎么 敢 看 我 的 信。",
            "你 又 弄 坏 了，真 气人。",
            "这个 愚蠢 的 规定 气死 我 了。",
        ),
        "happiness": (
            "真 是 太 惊喜 了，谢谢 你。",
            "你 来 了 我 真 高兴。",
            "我们 赢 了，太 棒 了。",
            "我 爱 这 首 歌，真 好听。",
            "太 好 了，今天 开始 放假。",
            "这 是 今年 最 好 的 消息。",
            "谢谢，我 今天 很 快乐。",
        ),
        "neutral": (
            "会议 十 点 在 四 号 房间 开始。",
            "报告 有 十二 页 和 一 张 表。",
            "请 在 表格 上 写 名字。",
            "火车 从 二 号 站台 出发。",
            "商店 六 点 关门。",
            "表格 要 签 两 次 名。",
            "文件 在 第二 个 文件夹 里。",
        ),
        "sadness": (
            "她 去世 以后 我 很 想念 她。",
            "空 房子 里 我 很 孤独。",
            "大火 让 我们 失去 一切。",
            "他 离开 我，再 也 没 回来。",
            "今天 我 一直 在 哭。",
            "永远 告别 让 人 心痛。",
            "我 的 老 狗 昨晚 死 了。",
        ),
    },
    "ru": {
        SHARED: (
            "Письмо лежит на кухонном столе.",
            "Они будут здесь через семь часов.",
            "Сумки стоят возле двери.",
            "Мы сейчас едем на вокзал.",
            "Автобус останавливается перед домом.",
            "Утром мне рассказали об этом.",
            "Я позвоню тебе после ужина.",
            "Мой брат приедет завтра.",
            "Отсюда видно реку.",
            "Дети сейчас в саду.",
        ),
        "anger": (
            "Хватит мне врать, надоело.",
            "Это нечестно, и ты это знаешь.",
            "Немедленно вон из моей комнаты.",
            "Ненавижу, когда на меня кричат.",
            "Как ты смеешь читать мои письма.",
            "Опять всё сломано, это возмутительно.",
            "Меня бесит это глупое правило.",
        ),
        "happiness": (
            "Какой чудесный сюрприз, спасибо.",
            "Как хорошо, что вы здесь, ура.",
            "Мы победили, это прекрасно.",
            "Обожаю эту песню, она прекрасна.",
            "Ура, сегодня начинаются каникулы.",
            "Это лучшая новость за весь год.",
            "Спасибо, я сегодня на седьмом небе.",
        ),
        "neutral": (
            "Собрание начинается в десять.",
            "В отчёте двенадцать страниц и таблица.",
            "Напишите ваше имя на бланке.",
            "Поезд отходит от второй платформы.",
            "Магазин открыт до шести.",
            "Бланк нужно подписать дважды.",
            "Файл лежит во второй папке.",
        ),
        "sadness": (
            "Мне так не хватает её, она умерла.",
            "Мне одиноко в этом пустом доме.",
            "Мы потеряли всё в пожаре.",
            "Меня бросили, и мне больно.",
            "Сегодня я весь день плачу.",
            "Больно прощаться навсегда.",
            "Моя старая собака умерла.",
        ),
    },
}

LANGUAGES: Final = tuple(TEXTS)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def spoken(language: str, sentence: str) -> tuple[str, list[tuple[str, int, int]]]:
    """The sentence as it is written and spoken, and its words as (word, first character, character
    after the last).

    Examples:
        >>> spoken("cmn", "我 哥哥 明天 来。")
        ('我哥哥明天来。', [('我', 0, 1), ('哥哥', 1, 3), ('明天', 3, 5), ('来', 5, 6)])
    """
    if language != "cmn":
        return sentence, [(match.group(), match.start(), match.end()) for match in _WORD.finditer(sentence)]
    text, words = "", []
    for piece in sentence.split():
        words += [(match.group(), len(text) + match.start(), len(text) + match.end()) for match in _WORD.finditer(piece)]
        text += piece
    return text, words


def word_marks(tokens: list[tuple[str, int, int]], speech: Speech) -> list[Mark]:
    """When each of our words is spoken.

    espeak-ng tells Mandarin character by character, which we join, and speaks some short words as
    one ("on the", "I am"), which we divide at the phone that their letters suggest; all other times
    are exact.
    """
    groups: list[tuple[list[tuple[str, int, int]], list[Mark]]] = []
    for token in tokens:
        inside = [word for word in speech.words if token[1] <= word.position < token[2]]
        if inside or not groups:
            groups.append(([token], inside))
        else:
            groups[-1][0].append(token)
    marks = []
    for joined, words in groups:
        if not words:
            continue
        phones = [phone for phone in speech.phones if words[0].start <= phone.start and phone.end <= words[-1].end]
        letters, spoken_letters, first = sum(len(label) for label, _, _ in joined), 0, 0
        for index, (label, position, _) in enumerate(joined):
            spoken_letters += len(label)
            left = len(joined) - index - 1
            last = max(first + 1, min(round(len(phones) * spoken_letters / letters), len(phones) - left)) if left else len(phones)
            marks.append(Mark(label, phones[first].start, phones[last - 1].end, position))
            first = last
    return marks
