"""A reward model: what GRPO asks while it trains, asked where nothing is trained."""

from suite import checkpoint, pins
from suite.columns import text_of


class RewardModel:
    """A sequence classifier with one output as a reward, called and computed as TRL does inside GRPO."""

    def __init__(self, name: str, batch_size: int = 16):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        import suite.model  # noqa: F401  (the Auto classes learn miniqwen)

        checkpoint.check_whole(name)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            repository, revision = pins.split(name)
            self.tokenizer = AutoTokenizer.from_pretrained(repository, revision=revision)
            how = {"num_labels": 1, "revision": revision, "ignore_mismatched_sizes": True, "output_loading_info": True}
            model, told = AutoModelForSequenceClassification.from_pretrained(repository, **how)
        except (OSError, ValueError) as error:  # the network, the Hub, and architectures without a classifier
            raise ValueError(f"Cannot load the reward model '{name}': {error}") from error
        random = sorted({*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])})
        if random:
            raise ValueError(
                f"'{name}' is no reward model: its weights hold no {', '.join(random)} of one output, and random "
                "numbers would judge. Name a sequence classifier with one label."
            )
        self.model = model.to(device).eval()
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.batch_size = batch_size

    def __call__(self, prompts, completions, **columns) -> list[float]:
        """The model's one output for each prompt and completion; conversations go through its own chat template."""
        import torch

        texts = [self._text(prompt, said) for prompt, said in zip(prompts, completions, strict=True)]
        found: list[float] = []
        for i in range(0, len(texts), self.batch_size):
            inputs = self.tokenizer(
                texts[i : i + self.batch_size],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=False,
            )
            with torch.inference_mode():
                found += self.model(**inputs.to(self.model.device)).logits[:, 0].float().tolist()
        return found

    def _text(self, prompt, completion) -> str:
        if isinstance(prompt, str):
            return prompt + text_of(completion)
        said = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
        return self.tokenizer.apply_chat_template(prompt + said, tokenize=False)
