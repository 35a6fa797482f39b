"""Worked solutions and R1 traces in the format that the rewards ask for: their thinking, then their final answer."""

from suite import reasoning


def worked(solution: str, answer: str | None = None) -> str | None:
    r"""A worked solution as a completion: all of it is the thinking. Without `answer`, its last \boxed{} is the answer;
    None where there is no answer, or no solution."""
    final = answer or reasoning.last_boxed(solution)
    return reasoning.write(solution, final) if final and solution.strip() else None


def traced(trace: str) -> tuple[str, str] | str:
    r"""(completion, final answer) of an R1 trace, or the reason why it is none.

    The thinking is what stands between <think> and </think>; the answer is the last \boxed{} (or <answer>) behind it.
    The summary that R1 writes before its answer is left out: the format has no place for it.
    """
    before, closed, said = trace.rpartition("</think>")
    if not closed:
        return "unclosed think" if "<think>" in trace else "no think"
    _, opened, inside = before.partition("<think>")
    thinking = inside if opened else before  # some copies lack the opening tag, which the prompt had
    answer = reasoning.final_answer(said)
    if not thinking.strip():
        return "no think"
    if not answer:
        return "no final answer"
    if any(tag in thinking for tag in reasoning.TAGS):
        return "tags inside the thinking"
    return reasoning.write(thinking, answer), answer


def row(question: str, completion: str, solution: str) -> dict:
    """A row that SFT, GRPO and evaluation can all read."""
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": completion}],
        "solution": solution,
    }
