"""GSM8K with its questions in Chinese, for GRPO: a prompt and the final number."""

from collections.abc import Iterator

from suite.data import reading

DEFAULTS = {
    "system_prompt": (
        "请解答用户的问题。先在 <think> 和 </think> 之间用中文一步一步地思考，"
        "然后在 <answer> 和 </answer> 之间只写出最终答案。"
    )
}


def load(split: str, *, source: str = "swulling/gsm8k_chinese", test_size: int = 500, seed: int = 0) -> Iterator[dict]:
    """Rows with the columns prompt and solution, from `question_zh-cn` and the whole number in `answer_only`.

    There is no completion: the worked solutions in `answer` are the English ones. Copies that call the question
    `question_zh` will do, too. `test_size` and `seed` divide a source without a test split.
    """
    names = ("question_zh-cn", "question_zh")
    for place, row in reading.rows(split, source, by=names, test_size=test_size, seed=seed):
        answer = reading.text(row, place, "answer_only", "answer")
        yield {
            "prompt": [{"role": "user", "content": reading.text(row, place, *names)}],
            "solution": answer.rpartition("####")[2].strip(),
        }
