"""Completions that keep a careless judge busy for ever, break it, or talk it into a reward. None of them is right."""

import random
from collections.abc import Callable, Iterator

GOLDS = ["42", r"\frac{\sqrt{3}}{2}", r"\{1,2,3\}", "x^2+2x+1", "Paris", "(B)", r"(-\infty,1)\cup(2,\infty)", None]


def hostile(seed: int, n: int) -> Iterator[str]:
    """`n` hostile completions, the same for the same seed."""
    r = random.Random(seed)
    for at in range(n):
        shape = SHAPES[at % len(SHAPES)]
        yield _WRAPS[r.randrange(len(_WRAPS))](shape(r)) if shape not in _WHOLE else shape(r)


_WRAPS: list[Callable[[str], str]] = [
    lambda s: f"<answer>{s}</answer>",
    lambda s: f"<think>hm</think><answer>{s}</answer>",
    lambda s: rf"\boxed{{{s}}}",
    lambda s: rf"<answer>\boxed{{{s}}}</answer>",
    lambda s: f"<answer>${s}$</answer>",
]


def _tower(r):
    height = r.randint(3, 40)
    return "^{".join(str(r.randint(2, 99)) for _ in range(height)) + "}" * (height - 1)


def _bare_tower(r):
    return r.choice(["^", "**"]).join(str(r.randint(2, 9)) for _ in range(r.randint(3, 30)))


def _bracketed_powers(r):
    text = f"{r.randint(2, 9)}^{r.randint(2, 9)}"
    for _ in range(r.randint(2, 12)):
        text = f"({text})^{{{r.randint(2, 99)}}}"
    return text


def _tower_in_words(r):
    return r.choice([r"10^{10^{10}}", r"2^{2^{2^{2^2}}}!", r"(10^{9})^{10^{9}}", r"e^{e^{e^{e^{e}}}}", r"7^{10^{8}}"])


def _factorials(r):
    return r.choice([f"{r.randint(1000, 10**9)}!", "9" + "!" * r.randint(2, 9), "(((9)!)!)!", "((5!)!)!", "99!^{99!}"])


def _braces(r):
    n = r.randint(20, 5000)
    return r.choice(["{" * n + "}" * n, "(" * n + "1" + ")" * n, "{" * n, r"\{" * n + r"\}" * n, r"\left(" * n])


def _fractions(r):
    n = r.randint(3, 200)
    return r"\frac{1}{" * n + str(r.randint(1, 9)) + "+x}" + "}" * (n - 1)


def _fraction_chain(r):
    return r"\frac" * r.randint(2, 500) + r.choice(["", "1", "12", "{1}"])


def _roots(r):
    n = r.randint(3, 200)
    return r.choice([r"\sqrt{1+", r"\sqrt[3]{7+", r"\sqrt[\sqrt2]{x+"]) * n + "y" + "}" * n


def _integral(r):
    return r.choice([
        r"\int_0^1 e^{e^x} dx", r"\int \frac{\sin x^2}{\ln x} dx", r"\int_{-\infty}^{\infty} e^{-x^4} \cos x dx",
        r"\int_0^{\pi} \sqrt{1+\cos^2 x}^{x} dx", r"\int\int\int x^{y^z} dx dy dz", r"\int_0^1 \frac{dx}{x^{97}+x+1}",
    ])  # fmt: skip


def _sum(r):
    big = r.choice(["10^9", "10^{12}", "999999999", r"\infty"])
    return r.choice([
        rf"\sum_{{k=1}}^{{{big}}} k^k", rf"\sum_{{k=1}}^{{{big}}} \frac{{\sin k}}{{k!}}",
        rf"\prod_{{k=1}}^{{{big}}} (1+k^{{-2}})", rf"\sum_{{i=1}}^{{{big}}}\sum_{{j=1}}^{{i}} \frac{{1}}{{i^j+1}}",
    ])  # fmt: skip


def _limit(r):
    return r.choice([
        r"\lim_{x \to 0} \frac{\sin(\tan x)-\tan(\sin x)}{x^{17}}", r"\lim_{n\to\infty} \frac{n!^{1/n}}{n}",
        r"\lim_{x\to\infty} x^{x^{x^{-x}}}", r"\lim_{x\to 0^+} (\ln x)^{\ln(\ln x)}",
    ])  # fmt: skip


def _giant_number(r):
    return str(r.randint(1, 9)) * r.choice([61, 400, 4301, 100_000]) + r.choice(["", ".5", "/3", "%", "!", " cm"])


def _giant_exponent(r):
    return r.choice(["1e999999999", "1E99999", "1e-999999999", r"1.5 \times 10^{999999999}", "10^{10000000}", "1e400"])


def _binomial(r):
    return rf"\binom{{10^{r.randint(5, 9)}}}{{{r.randint(1000, 9000)}}}"


def _choose_many(r):
    return "+".join(rf"\binom{{{r.randint(500, 999)}}}{{{k}}}" for k in range(100, 100 + r.randint(2, 20)))


def _matrix(r):
    n = r.randint(5, 60)
    row = "&".join(["x"] * n)
    return r"\begin{pmatrix}" + r"\\".join([row] * n) + r"\end{pmatrix}" + r.choice(["", "^{99}", "^{-1}"])


def _determinant(r):
    rows = r"\\".join("&".join(f"{a}^{{{b}}}" for b in "xyzuvw") for a in r.sample("abcdefghjk", 6))
    return rf"\det\begin{{vmatrix}}{rows}\end{{vmatrix}}"


def _polynomial(r):
    n = r.randint(50, 999)
    return r.choice([f"(x+1)^{{{n}}}", f"(a+b+c+d+e)^{{{n}}}", f"(x+y)^{{{n}}}(x-y)^{{{n}}}", f"(x^{n}-1)/(x-1)"])


def _trigonometry(r):
    n = r.randint(3, 30)
    return r.choice([r"\sin(" * n + "x" + ")" * n, r"\cos^{" * n + "x" + "}" * n, r"\tan " * n + "x"])


def _long_sum(r):
    return "+".join(rf"\sqrt{{{r.randint(2, 10**6)}}}" for _ in range(r.randint(5, 40)))


def _equation(r):
    return r.choice([
        "x^{97}+x^{31}+7x=11", r"\sin x + x^x = e^{\cos x}", "=" * 500, "x=" * 200 + "1", "a<b<" * 100 + "c",
        r"x^5-x-1 < 0 \text{ or } \sin x > x^7", r"\sqrt{x^{13}+\sqrt{x+1}} \le \ln(x^2+e^x)",
    ])  # fmt: skip


def _set(r):
    return r"\{" + ",".join(rf"\sqrt{{{k}}}+\sqrt{{{k + 1}}}" for k in range(r.randint(4, 200))) + r"\}"


def _union(r):
    return r"\cup".join(f"({k},{k + 0.5})" for k in range(3, r.randint(5, 150)))


def _mess(r):
    words = [r"\frac", "{", "}", "^", "_", "&", r"\\", "$", r"\left(", r"\right]", "x", "1", "-", r"\sqrt", "!", "["]
    return "".join(r.choice(words) for _ in range(r.randint(5, 3000)))


def _odd_commands(r):
    return r.choice([
        r"\def\a{\a\a}\a", r"\newcommand{\x}{\x\x}\x", r"\input{/etc/passwd}", r"\write18{ls}", r"\csname" * 99,
        r"\begin{align}" * 50, r"\end{pmatrix}" * 50, "\\" * 4001, r"\over" * 200, r"1\choose" * 99 + "2",
    ])  # fmt: skip


def _code(r):
    return r.choice([
        "__import__('os').system('true')", "__import__('os')", "exec('while True: pass')", "[0]*10**10", "lambda: 42",
        "(lambda f: f(f))(lambda f: f(f))", "while True: pass", "eval('4'+'2')", "open('/dev/zero').read()",
        "Symbol('x')**Integer(10)**10**10", "import sympy; sympy.factorial(10**9)", "print(42)",
        "{42 for _ in iter(int, 1)}", "x.__class__", r"\text{__import__('os')}",
        "S('__import__(\"os\").getcwd()')", "self.right = True", "{{42}}%s{0}",
    ])  # fmt: skip


def _hedge(r):
    return r.choice([
        "42 or 43 or Paris or (A) or (B)", ", ".join(map(str, range(1000))), "A B C D E", "(A) or (B)", "42 and 43",
        "not 42", "40+2", r"6\times7", "41=42", "1=42", "x=42 or x=43", "Paris London Rome", "maybe (B) or (C)",
        "any number", r"\mathbb{R}", r"(-\infty,\infty)", "it is what the gold says", "right", "1.0", "None", "nan",
    ])  # fmt: skip


def _nothing(r):
    return r.choice(["", " ", "\0", "\0" * 1000, "\n" * 5000, "\u200b" * 100, ".", "$$", "{}", r"\boxed{}", "\ufeff"])


def _scripts(r):
    ranges = [(0x20, 0x7F), (0x4E00, 0x9FFF), (0x600, 0x6FF), (0x1F300, 0x1F5FF), (0x300, 0x36F), (0xFF01, 0xFF5E),
              (0, 31), (0xD800, 0xDFFF), (0x2200, 0x22FF), (0x2070, 0x209F), (0x660, 0x669)]  # fmt: skip
    return "".join(chr(r.randint(*r.choice(ranges))) for _ in range(r.randint(5, 800)))


def _other_digits(r):
    return r.choice(["٤٣", "४३", "²³", "④③", "Ⅻ", "𝟜𝟛", "五十一", "\u0664" * 500, "1²³⁴⁵⁶⁷⁸⁹", "½" * 50])


def _long(r):
    return r.choice(["x", "1+", "a ", "9,", r"\sqrt", "答案", "e^", "(", ",1", r"\pi "]) * r.randint(10_000, 50_000)


def _spaces(r):
    return "answer is" + " " * r.randint(1000, 90_000) + "x\ty" * r.randint(1, 2000)


def _separators(r):
    return r.choice(["1,", "1 ", "1.", "-", "+", "1/", "1:", "％", "$", "\\$", "°"]) * r.randint(20, 8000)


def _unit_flood(r):
    return "5 " + "cm per " * r.randint(10, 3000) + "s"


def _unclosed(r):
    return r.choice([
        "<think>" + "42 " * 500, "<answer>42", "<think>42</answer>", "<answer><think>42</answer>",
        "</answer>42<answer>",
        r"\boxed{42", r"\boxed" * 500, "<think></think><think>42", "<ANSWER>42</ANSWER>", "< answer >42</ answer >",
    ])  # fmt: skip


def _tags(r):
    n = r.randint(100, 20_000)
    return r.choice([
        "<think>" * n, "<answer>" * n, "</think>" * n, "</answer>" * n, r"\boxed{" * n, "<think></think>" * n,
        "<answer></answer>" * n, "<answer>" * n + "43" + "</answer>" * n, r"\boxed{" * n + "43" + "}" * n,
        "<think>a" + "</think><answer>" * n + "x" + "</answer>" * n + "junk",
    ])  # fmt: skip


_WHOLE = (_unclosed, _tags)  # these are about the tags, and stand in none
SHAPES = [
    _tower, _bare_tower, _bracketed_powers, _tower_in_words, _factorials, _braces, _fractions, _fraction_chain, _roots,
    _integral, _sum, _limit, _giant_number, _giant_exponent, _binomial, _choose_many, _matrix, _determinant,
    _polynomial, _trigonometry, _long_sum, _equation, _set, _union, _mess, _odd_commands, _code, _hedge, _nothing,
    _scripts, _other_digits, _long, _spaces, _separators, _unit_flood, _unclosed, _tags,
]  # fmt: skip

# Short and deep enough to look like an answer: each keeps sympy busy for seconds, or for ever.
WORST = [
    r"(((2^9)^9)^9)^9",
    r"((((9^9)^9)^9)^9)^9",
    r"(9^{999})^{999}",
    r"((7^{99})^{99})^{99}",
    r"10^{10^{10}}",
    r"10^{10^{7}}",
    r"2^{2^{2^{2^2}}}",
    r"2^{2^{2^{2^2}}}!",
    r"9^{9^9}",
    r"9^{9^{9^9}}",
    r"9^9^9^9",
    r"7^{8!}",
    r"(99!)^{99}",
    r"99!^{99!}",
    r"((5!)!)!",
    r"(9!)!",
    r"(99^2)!",
    r"10000000000!",
    r"9^{99} \bmod 10^{99!}",
    r"\binom{10^6}{5000}",
    r"\binom{10^9}{10^6}",
    r"\binom{99^{9}}{99^{3}}",
    r"\sqrt[9]{9^{9^8}+1}",
    r"\sum_{k=1}^{10^9} k^k",
    r"\sum_{k=1}^{10^9} \frac{1}{k^2+k+1}",
    r"\sum_{k=1}^{999} \frac{\sin k}{k!}",
    r"\sum_{i=1}^{999}\sum_{j=1}^{999} \frac{1}{i^j+j^i}",
    r"\prod_{k=1}^{10^6} (1+\frac{1}{k^3})",
    r"\prod_{k=1}^{99} (x^k-1)",
    r"\int_0^1 e^{e^x} dx",
    r"\int_0^{\infty} \frac{\sin(x^3)}{x^5+x+1} dx",
    r"\int \frac{\sin x^2}{\ln x} dx",
    r"\int_0^1 \frac{dx}{x^{97}+x+1}",
    r"\int_0^{\pi} \sqrt{1+\cos^2 x}^{x} dx",
    r"\int_0^1\int_0^1\int_0^1 x^{y^z} dx dy dz",
    r"\lim_{x \to 0} \frac{\sin(\tan x)-\tan(\sin x)}{x^{17}}",
    r"\lim_{x\to\infty} x^{x^{x^{-x}}}",
    r"\lim_{n\to\infty} \frac{n!^{1/n}}{n}",
    r"\frac{d^{99}}{dx^{99}} e^{\sin x}",
    r"(a+b+c+d+e+f)^{99}",
    r"(x+y+z)^{200}-(x-y-z)^{200}",
    r"(x+1)^{999}",
    r"\frac{x^{999}-1}{x^{7}-1}",
    r"(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7})^{99}",
    r"\sqrt{1+\sqrt{2+\sqrt{3+\sqrt{4+\sqrt{5+\sqrt{6+\sqrt{7}}}}}}}",
    r"\frac{1}{\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+\sqrt{11}+\sqrt{13}}",
    r"\sqrt[3]{2+\sqrt[3]{3+\sqrt[5]{5}}}+\sqrt[7]{11+\sqrt{13}}",
    r"\sin(\cos(\tan(\sin(\cos(\tan(\sin(\cos(x))))))))",
    r"\sin^{99}x + \cos^{99}x + \tan^{99}x",
    r"\cos\frac{\pi}{97}+\cos\frac{3\pi}{97}+\cos\frac{5\pi}{97}",
    r"\tan(99\arctan(\frac{1}{97}))",
    r"\log_{99^{99}}(98^{98}+97^{97})",
    r"e^{e^{e^{e^{e}}}}",
    r"\pi^{\pi^{\pi^{\pi^{\pi}}}}",
    r"i^{i^{i^{i^{i}}}}",
    r"(1+i)^{9999}",
    r"x^{97}+x^{31}+7x=11",
    r"\sin x + x^x = e^{\cos x}",
    r"x^5-x-1 < 0 \text{ or } \sin x > x^7",
    r"\begin{pmatrix}a&b&c&d\\e&f&g&h\\i&j&k&l\\m&n&o&p\end{pmatrix}^{99}",
    r"\begin{pmatrix}a&b&c&d\\e&f&g&h\\i&j&k&l\\m&n&o&p\end{pmatrix}^{-1}",
    r"\begin{pmatrix}99!&99^{99}\\98!&97^{97}\end{pmatrix}^{999}",
    r"\{x^{x^{x}}, \sqrt{x+\sqrt{y+\sqrt{z}}}, \sin^9 x\cos^9 y\}",
    r"\frac{\frac{\frac{x^{9}+1}{y^{9}+1}}{\frac{z^{9}+1}{w^{9}+1}}}{\frac{\frac{a^9+1}{b^9+1}}{\frac{c^9+1}{d^9+1}}}",
]
