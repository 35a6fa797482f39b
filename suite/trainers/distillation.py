"""White-box distillation in which the answers may also be given, and the vocabularies padded to different lengths.

The loss is TRL's: at every token of a completion the generalized Jensen-Shannon divergence of equation (1) in
https://huggingface.co/papers/2306.13649 between the teacher's and the student's next-token distributions,

    beta = 0      KL(teacher || student)                                  forward: cover all the teacher does
    beta = 1      KL(student || teacher)                                  reverse: do nothing the teacher would not
    between       beta KL(teacher || m) + (1 - beta) KL(student || m),    m = beta teacher + (1 - beta) student

summed over the completions of the global batch and divided by their number of tokens, so that micro-batches and ranks
do not change it. Both logits are divided by `temperature`; there is no factor T^2 (section 2 of
https://arxiv.org/abs/1503.02531), which keeps two losses at different T in proportion: this one has no second loss, and
Adam undoes constant factors. TRL projects tiles of tokens and vocabulary, so no (B, T, V) logits are ever whole.
"""

import random

import torch
from trl import DistillationTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.data_utils import common_prefix_length, is_conversational
from trl.trainer.utils import create_model_from_path

from suite import columns


class WhiteBoxTrainer(DistillationTrainer):
    """`DistillationTrainer` that draws a share `lmbda` of its steps from the student and reads the others off the rows.

    A row that is given takes the road of a row that was sampled, from TRL's batches to the loss. `rows_of_teacher` is
    what the teacher's vocabulary had before `load_teacher` fitted it to the student's.
    """

    def __init__(self, *args, lmbda: float, rows_of_teacher: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.lmbda, self.rows_of_teacher = lmbda, rows_of_teacher
        template = self._tokenizer.chat_template
        marked = template is None or has_generation_markers(template)
        self.training_template = template if marked or lmbda > 0 else get_training_chat_template(self._tokenizer)

    def samples(self) -> bool:
        """Whether this step's completions are the student's: the same on all ranks, and after a resume.

        Evaluation reads the rows wherever they hold completions, so that two evaluations can be compared.
        """
        if not self.model.training:
            return self.lmbda == 1
        return random.Random(f"{self.args.seed} {self.state.global_step}").random() < self.lmbda

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        if self.samples():
            return super()._generate_and_score_completions(inputs)
        # TRL hands the prompts on to `_generate` and reads nothing else of a row: here the prompt is the whole row.
        return super()._generate_and_score_completions([{"prompt": row} for row in inputs])

    def _generate(self, prompts: list) -> tuple:
        if not isinstance(prompts[0], dict):
            return super()._generate(prompts)
        cut = [self.given(row) for row in prompts]
        prompt_ids, completion_ids, masks = (list(part) for part in zip(*cut, strict=True))
        self._log_lengths(prompt_ids, completion_ids)
        return prompt_ids, completion_ids, masks, None, []  # no images, of rows or of tools

    def given(self, row: dict) -> tuple[list[int], list[int], list[int]]:
        """(prompt, completion, 1 where a token of the completion is the assistant's) of a row, as token ids.

        The completion ends with the last end of a turn: what a template writes behind it is never sampled, either.
        """
        ids, trained = trained_tokens(row, self._tokenizer, self.training_template, self.chat_template_kwargs)
        if 1 not in trained:
            raise ValueError(f"A row has no completion to learn from: {str(row)[:200]}.")
        start = trained.index(1)
        ends = [i for i, token in enumerate(ids) if trained[i] and token in self.eos_token_ids]
        end = 1 + (ends[-1] if ends else max(i for i, bit in enumerate(trained) if bit))
        end = min(end, start + self.max_completion_length)
        return ids[:start], ids[start:end], trained[start:end]

    def _log_lengths(self, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> None:
        """What TRL logs of sampled completions, of given ones."""
        facts = torch.tensor(
            [
                [len(p), len(c), c[-1] not in self.eos_token_ids]
                for p, c in zip(prompt_ids, completion_ids, strict=True)
            ],
            device=self.accelerator.device,
        )
        facts = self.accelerator.gather(facts)  # (rows of all ranks, 3)
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self.state.num_input_tokens_seen += facts[:, :2].sum().item()
        self._metrics[mode]["num_tokens"] = [self.state.num_input_tokens_seen]
        self._metrics[mode]["completions/mean_length"].append(facts[:, 1].float().mean().item())
        self._metrics[mode]["completions/clipped_ratio"].append(facts[:, 2].float().mean().item())

    def _compute_loss(self, unwrapped_student, inputs, num_items_in_batch):
        whole = unwrapped_student.get_output_embeddings()
        if self.rows_of_teacher >= whole.out_features:
            return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)
        # TRL asks the model for its head and loops over the rows of the student's: it is shown the shared ones.
        unwrapped_student.get_output_embeddings = lambda: _FirstRows(whole, self.rows_of_teacher)
        try:
            return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)
        finally:
            del unwrapped_student.get_output_embeddings


class _FirstRows:
    """A language-model head of which only the first rows are there."""

    def __init__(self, head, rows: int):
        whole = head.weight.full_tensor() if hasattr(head.weight, "full_tensor") else head.weight  # FSDP2 shards it
        self.weight = whole[:rows]  # (rows, D)
        self.bias = None if head.bias is None else head.bias[:rows]


def load_teacher(config, attn_implementation: str | None, rows: int):
    """The frozen teacher, its embedding and head cut to the student's number of `rows` (or stretched, and then masked).

    A teacher is only read, so its dtype is what its checkpoint has (`auto`; bfloat16 for Qwen2.5), unless
    `teacher_model_init_kwargs` says otherwise. TRL would load 32 bits.
    """
    how = {
        "revision": config.teacher_model_revision or "main",
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": attn_implementation,
        "dtype": "auto",
        **(config.teacher_model_init_kwargs or {}),
    }
    if config.world_size > 1:
        how["device_map"] = None  # each rank holds a whole teacher, or its shard under ZeRO-3
    teacher = create_model_from_path(config.teacher_model_name_or_path, **how)
    teacher.resize_token_embeddings(rows, mean_resizing=False)
    return teacher.eval().requires_grad_(False)


def trained_tokens(row: dict, tokenizer, marked_template: str | None, template_kwargs: dict):
    """(token ids, 1 where SFT would train) of a `messages` or `prompt+completion` row, by SFTTrainer's own rules."""
    template_kwargs = {**template_kwargs, **columns.template_kwargs(row)}
    if "messages" in row:
        found = tokenizer.apply_chat_template(
            row["messages"],
            chat_template=marked_template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **template_kwargs,
        )
        return list(found["input_ids"]), list(found["assistant_masks"])
    if is_conversational(row):
        how = {"tokenize": True, "return_dict": True, **template_kwargs}
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **how)["input_ids"]
        whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], **how)["input_ids"]
    else:
        completion = row["completion"].removesuffix(tokenizer.eos_token) + tokenizer.eos_token
        prompt, whole = tokenizer([row["prompt"], row["prompt"] + completion])["input_ids"]
    shared = common_prefix_length(prompt, whole)  # where a token merges across the border, the completion has it
    return list(whole), [0] * shared + [1] * (len(whole) - shared)
