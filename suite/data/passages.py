"""Four kinds of text that are in nobody's corpus, to measure tokenizers on: English, Chinese, code and digits.

Written for this file, but for the code, which is the suite's own, and the digits, which are drawn.
"""

import random
from importlib.resources import files

ENGLISH = """\
The lighthouse keeper's daughter had never meant to learn the tides by heart, yet by the autumn she turned nine she \
could tell, from the colour of the water under the pier alone, whether the fishing boats would be back before supper. \
Her father wrote the hours down in a ledger, in ink that the damp turned brown. She thought this a waste of good paper.

"What if you're wrong?" he asked her once, not unkindly. He was mending a net, and didn't look up from it.

"Then I'll be wrong early," she said, "and you will be wrong in writing."

Whether a prediction is useful depends less on how often it comes true than on what it costs to act upon it. A farmer \
who carries an umbrella every day is never surprised by rain; nobody, however, would call that a forecast. \
Statisticians distinguish between calibration, which asks that events announced with a probability of seventy percent \
happen about seven times in ten, and sharpness, which asks for announcements that commit themselves. Both can be \
measured, and neither is worth much without the other. The same holds for models of language: the one that spreads \
its bets over everything is seldom badly wrong, and it has nothing to say.

Researchers at a small institute in the north measured how quickly sea ice forms around the buoys they had anchored \
the previous summer. Their instruments recorded temperature, salinity and wind speed every ten minutes; a satellite \
collected the readings twice a day. Of the forty buoys, thirty-one survived until spring. The remaining nine were \
found by a trawler, frozen into a single floe, still transmitting.
"""

CHINESE = """\
老木匠每天天不亮就起床，先在院子里转一圈，看看昨夜晾着的木板有没有被露水打湿，然后才回屋生火烧水。邻居们都说他脾气古怪，\
可是谁家的门窗坏了，还是要请他来修。他修东西从来不急，总要先用手把木头摸上半天，好像在听它说话。

“您这样慢，一天能挣几个钱？”年轻的徒弟忍不住问。

“木头长了三十年，你让它等你半个钟头，它不会有意见。”老人一边磨刨刀一边回答，“做得快的活，坏得也快。”

统计学家常常提醒我们，相关关系并不等于因果关系。夏天冰淇淋的销量上升，溺水事故也随之增多，但这并不意味着吃冰淇淋会导致溺水，\
真正的原因是气温。要想证明一种药物确实有效，研究人员必须设计对照实验，把参加者随机分成两组，而且不能让任何一方事先知道谁服用的\
是真药。即便如此，样本太小、观察时间太短，仍然可能得出错误的结论。

这座城市的地铁开通于二十世纪末，最初只有一条线路，十六个车站。如今，它已经发展成为覆盖全市的交通网络，每天运送乘客超过\
三百万人次。为了缓解早晚高峰的拥挤，管理部门缩短了列车的间隔，并且在换乘站增设了通道。不过，不少居民仍然更愿意骑自行车上班，\
因为既省钱，又能锻炼身体。
"""


def passages() -> dict[str, str]:
    """Kind of text -> the text, the same in every call."""
    draw = random.Random(0)
    sums = ((draw.randrange(10 ** draw.randint(1, 6)), draw.randrange(10 ** draw.randint(1, 6))) for _ in range(100))
    return {
        "english": ENGLISH,
        "chinese": CHINESE,
        "code": files("suite").joinpath("registry.py").read_text(encoding="utf-8"),
        "digits": "".join(f"{a} + {b} = {a + b}\n" for a, b in sums),
    }
