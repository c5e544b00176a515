"""Text that says nothing about any task: what stands around an input in a long context. Written for this purpose."""

from __future__ import annotations

from softmux.formats.layout import Encoder

SENTENCES = (
    "The canal was dug by hand over eleven summers, and its locks are still opened twice a day.",
    "Rain that falls on the eastern slope reaches the sea after about nine days.",
    "A tin of paint covers twelve square metres if the wall is dry and smooth.",
    "The ferry leaves from the second pier at twenty past the hour, except on Sundays.",
    "Most of the island's roads follow the paths that carts once took between the farms.",
    "The museum keeps its maps in flat drawers, sorted by the year in which they were printed.",
    "Bread dough rises more slowly in a cold kitchen, and a damp cloth keeps its surface soft.",
    "The bridge has four arches, and the one nearest the mill is a little wider than the rest.",
    "In spring the gardeners move the young trees outside, row by row, when the nights grow mild.",
    "The railway timetable is printed on yellow paper and hangs beside the waiting room's door.",
    "Clay tiles are fired for a day and a half and then left in the kiln until they have cooled.",
    "The library's upper floor is lit by a row of windows that face the river.",
    "Every boat in the harbour has a number, painted in white on the left side of its bow.",
    "The old clock loses two minutes a week, so the caretaker sets it on Monday mornings.",
    "Wool from the valley is washed in the stream, dried on fences and sold by weight.",
    "The surveyors measured the field twice and wrote both results into the same notebook.",
)


def filler(encoder: Encoder, tokens: int) -> str:
    """Whole sentences, in order and again from the first, as many as fit into so many tokens; one at least."""
    said: list[str] = []
    length = 0
    while True:
        sentence = SENTENCES[len(said) % len(SENTENCES)]
        length += len(encoder.encode(f" {sentence}", add_special_tokens=False))
        if said and length > tokens:
            return " ".join(said)
        said.append(sentence)
