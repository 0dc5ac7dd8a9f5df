"""Captions cut into words as NLTK's word_tokenize cuts them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from image_encoders.inputs.words import words

# What NLTK 3.10's word_tokenize gives with its own English sentence model.
CAPTIONS = {
    "a man riding a wave .": "a|man|riding|a|wave|.",
    "two dogs play. one holds a ball.": "two|dogs|play|.|one|holds|a|ball|.",
    'he says "stop!" and runs': "he|says|``|stop|!|''|and|runs",
    "a woman's child isn't here; they can't see": "a|woman|'s|child|is|n't|here|;|they|ca|n't|see",
    "the girls' team is gonna win": "the|girls|'|team|is|gon|na|win",
    "cannot, gimme, wanna go": "can|not|,|gim|me|,|wan|na|go",
    "it costs $5.50 (or 3,000 yen) & tax, 50%": "it|costs|$|5.50|(|or|3,000|yen|)|&|tax|,|50|%",
    "wait... what?!": "wait|...|what|?|!",
    "a t-shirt--red and blue": "a|t-shirt|--|red|and|blue",
    "dr. smith and mr. brown walk down 5th ave. together": "dr.|smith|and|mr.|brown|walk|down|5th|ave.|together",
    "player no. 5. he runs": "player|no|.|5.|he|runs",
    "u.s. soldiers at 5 p.m. today.": "u.s.|soldiers|at|5|p.m.|today|.",
    "a man named j. smith.": "a|man|named|j.|smith|.",
    "“quoted” and ‘single’ caf\u00e9": "“|quoted|”|and|‘|single|’|caf\u00e9",
    "a 12:30 train: late": "a|12:30|train|:|late",
    "one.two": "one.two",
    "": "",
    " \n\t ": "",
}


@pytest.mark.parametrize("caption", CAPTIONS)
def test_a_caption_has_the_words_that_nltk_finds(caption):
    assert "|".join(words(caption)) == CAPTIONS[caption]


def test_the_full_stop_of_every_sentence_is_a_word_of_its_own():
    assert words("a man stands. he smiles. it rains.").count(".") == 3


def test_words_come_in_order_and_lose_nothing_but_spaces():
    caption = "a man, a dog -- and (three) birds; near the 2nd house's door."
    assert "".join(words(caption)) == caption.replace(" ", "")


def test_threads_agree_from_the_first_call_on():
    import image_encoders.inputs.words as module

    module._tokenizers.cache_clear()
    caption = "dr. smith isn't here. he left at 5 p.m. yesterday!"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(words, [caption] * 64))
    assert all(one == found[0] for one in found)
