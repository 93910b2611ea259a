import sys

import pytest

from pgcli.environments.text.tokenizers import Bytes, Characters, HuggingFace, Words, padding
from pgcli.errors import InputError


def test_characters_are_numbered_in_their_order_and_the_special_tokens_follow():
    tokens = Characters("abc")
    assert tokens.encode("cab") == [2, 0, 1]
    assert (tokens.bos, tokens.end, tokens.pad, tokens.size) == (3, 4, 5, 6)
    assert tokens.decode([3, 2, 0, 1, 4, 5]) == "cab"
    assert tokens.decode([3, 2, 0, 1, 4, 5], specials=True) == "<bos>cab<end><pad>"


def test_words_stand_between_spaces():
    tokens = Words(["the", "dog", "."])
    assert tokens.encode("the  dog .") == [0, 1, 2]
    assert tokens.decode([0, 1, 2, tokens.end]) == "the dog ."


def test_what_the_vocabulary_has_not_is_refused_and_named():
    with pytest.raises(InputError, match="not among the 3 characters of the vocabulary: 'x', 'y'"):
        Characters("abc").encode("yax")
    with pytest.raises(InputError, match="'<end>'"):
        Words(["the"]).encode("the <end>")
    with pytest.raises(InputError, match="once"):
        Characters("aba")


@pytest.mark.parametrize("text", ["", "plain", "Grüße, 猫 🙂\n"])
def test_bytes_read_back_as_the_text(text):
    tokens = Bytes()
    assert tokens.decode(tokens.encode(text)) == text
    assert tokens.decode([tokens.bos, *tokens.encode(text), tokens.end, tokens.pad]) == text
    assert tokens.decode([*tokens.encode(text), tokens.end], specials=True) == text + "<end>"


def test_there_are_260_bytes_and_the_special_ones_are_no_byte():
    tokens = Bytes()
    assert tokens.size == 260
    assert len({tokens.bos, tokens.end, tokens.pad} | set(range(256))) == 259


def test_half_a_character_is_shown_and_does_not_stop_the_rest():
    assert Bytes().decode([*"é".encode()[:1], ord("a")]) == "�a"


@pytest.mark.parametrize(("own", "end", "expected"), [(7, 2, 7), (None, 2, 0), (2, 2, 0), (0, 0, 1), (None, 0, 1)])
def test_the_end_is_never_what_pads(own, end, expected):
    assert padding(own, end=end) == expected


def test_a_folder_that_is_not_there_and_an_extra_that_is_missing_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no folder"):
        HuggingFace(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "transformers", None)  # an import of it fails
    with pytest.raises(InputError, match=r"pip install 'policy-gradient-cli\[llm\]'"):
        HuggingFace(tmp_path)


def saved(folder, **special):
    """A word tokenizer, made here and saved as transformers does."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"a": 0, "b": 1, "<eos>": 2, "<unk>": 3}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    return folder


def test_a_hugging_face_folder_whose_pad_is_its_end_is_padded_with_another_token(tmp_path):
    tokens = HuggingFace(saved(tmp_path, eos_token="<eos>", pad_token="<eos>"))
    assert tokens.end == 2
    assert tokens.pad != tokens.end
    assert tokens.encode("b a") == [1, 0]
    assert tokens.decode([1, 0, 2]) == "b a"


def test_a_hugging_face_folder_without_an_end_token_is_refused(tmp_path):
    with pytest.raises(InputError, match="no end token"):
        HuggingFace(saved(tmp_path))


def test_a_hugging_face_folder_without_a_tokenizer_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="no tokenizer that can be read"):
        HuggingFace(tmp_path)
