"""The testbed's tokenizer: one token per character, and one for the answer mark.

Transformers gives every checkpoint of Qwen2 architecture Qwen2's own way of splitting text,
whatever class and splitting the tokenizer files name; a plain character tokenizer loses all its
spaces there. So this is a Qwen2 tokenizer: byte level, without a single merge. It adds no special
tokens and decodes to exactly the text it was given.
"""

from pathlib import Path

from harness.data.testbed.chains import MARK

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
ALPHABET = "\n 0123456789abcdefghijklmnopqrstuvwxyz+-*=,;?#"
CONTEXT = 256  # positions that a testbed model has
_BYTE_LEVEL = {"\n": "Ċ", " ": "Ġ"}  # how the byte-level alphabet writes white space


def build_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files to `folder`; `AutoTokenizer.from_pretrained` loads them.

    Characters outside of the alphabet are an error of the caller: byte-level tokenizers drop them.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    tokens = (PAD, EOS, UNKNOWN, MARK, *(_BYTE_LEVEL.get(c, c) for c in ALPHABET))
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    tokenizer.add_tokens([AddedToken(MARK, normalized=False, special=False)])
    tokenizer.save_pretrained(folder)
