"""The shipped sources on small archives of the packages' own shapes."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from softmux.archives import FetchFailed
from softmux.tuning.data.examples import BadData, Example, checked, several
from softmux.tuning.data.split import is_held_back
from softmux.tuning.sources import addresses, countries, docstrings, hutto, labelled_xml, names
from softmux.tuning.sources.recombine import recombine

ADDRESSES = b"""<AddressCollection>
  <AddressString><AddressNumber>219</AddressNumber> <StreetName>De</StreetName> <StreetName>La Rosa,</StreetName>\
 <PlaceName>Evanston,</PlaceName> <ZipCode>60201</ZipCode></AddressString>
  <AddressString><PlaceName>A &amp; B</PlaceName> <NotAddress>,</NotAddress> <StateName>"IL"</StateName>
  </AddressString>
</AddressCollection>"""


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def vader(tmp_path: Path, **files: str) -> Path:
    defaults = {"tweets": "", "movieReviewSnippets": "", "amazonReviewSnippets": "", "nytEditorialSnippets": ""}
    inner = pack(
        tmp_path / "inner.tar.gz",
        {f"hutto_ICWSM_2014/{k}_GroundTruth.txt": v.encode() for k, v in (defaults | files).items()},
    )
    member = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
    return pack(tmp_path / "vader.tar.gz", {member: inner.read_bytes()})


def test_movie_snippets_beyond_half_a_point_are_positive_or_negative(tmp_path: Path) -> None:
    movies = "1\t2.26\tA gripping film\r\n2\t-0.5\tso so\r\n3\t-0.6\tToo tepid – naïf\r\n4\t0.5\tso\r\n"
    assert hutto.movie_sentiment(vader(tmp_path, movieReviewSnippets=movies)) == [
        Example("A gripping film", " positive", "movieReviewSnippets_GroundTruth.txt", 1),
        Example("Too tepid – naïf", " negative", "movieReviewSnippets_GroundTruth.txt", 3),
    ]


def test_product_snippets_are_rated_as_movies_are_unless_one_has_two_ratings(tmp_path: Path) -> None:
    products = "1_1\t1.2\tgood sound\r\n1_2\t-2\tit broke\r\n1_3\t0.1\tit is black\r\n2_1\t1\tboth\r\n2_2\t-1\tboth\r\n"
    found = hutto.product_sentiment(
        vader(tmp_path, amazonReviewSnippets=products, movieReviewSnippets="1\t2\tfilm\r\n")
    )
    assert [(example.text, example.answer) for example in found] == [
        ("good sound", " positive"),
        ("it broke", " negative"),
    ]


def test_a_text_says_its_source_unless_two_have_it(tmp_path: Path) -> None:
    archive = vader(
        tmp_path,
        tweets="1\t1\tso lucky\r\n2\t1\tboth\r\n",
        movieReviewSnippets="1\t1\ta film\r\n",
        amazonReviewSnippets="1_1\t0\ta player\r\n",
        nytEditorialSnippets="1_1\t0\tthe mayor\r\n1_2\t0\tboth\r\n",
    )
    found = {example.text: example.answer for example in hutto.text_source(archive)}
    assert found == {"so lucky": " tweet", "a film": " movie", "a player": " product", "the mayor": " news"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2\tgood", "row 2: 3 tab-separated columns"),
        ("2\tmuch\tgood", "row 2, column rating: 'much' is no number"),
        ("2\tnan\tgood", "row 2, column rating: 'nan' is no finite number"),
    ],
)
def test_a_broken_rating_row_is_named(line: str, said: str) -> None:
    with pytest.raises(BadData, match=f"movies.txt, {said}"):
        hutto.rated(f"1\t1\tfine\r\n{line}\r\n".encode(), "movies.txt")


def test_broken_utf8_is_named_by_its_row() -> None:
    with pytest.raises(BadData, match=r"movies\.txt, row 2: byte 11 is not UTF-8"):
        hutto.rated(b"1\t1\tfine\r\n2\xff\t1\tbad\r\n", "movies.txt")


def test_names_are_persons_or_companies(tmp_path: Path) -> None:
    folder = "probablepeople-0.5.6/name_data/labeled"
    person = b"<NameCollection><Name><GivenName>Drake</GivenName> <Surname>Rice</Surname></Name></NameCollection>"
    company = b"<NameCollection><Name><CorporationName>a &amp; co,</CorporationName>\n  </Name></NameCollection>"
    files = {f"{folder}/person_labeled.xml": person, f"{folder}/company_labeled.xml": company}
    assert names.person_or_company(pack(tmp_path / "names.tar.gz", files)) == [
        Example("Drake Rice", " person", "person_labeled.xml", 1),
        Example("a & co,", " company", "company_labeled.xml", 1),
    ]


def test_an_address_becomes_compact_json_of_its_parts(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar.gz", {"usaddress-0.5.16/training/labeled.xml": ADDRESSES})
    first, second = addresses.parts_as_json(archive)
    assert first.text == "219 De La Rosa, Evanston, 60201"
    assert first.answer == ' {"AddressNumber":"219","StreetName":"De La Rosa","PlaceName":"Evanston","ZipCode":"60201"}'
    assert json.loads(second.answer) == {"PlaceName": "A & B", "StateName": '"IL"'}


def test_recombined_addresses_use_no_held_back_row_and_equal_none(tmp_path: Path) -> None:
    rows = "".join(
        f"<AddressString><AddressNumber>{i}</AddressNumber> <StreetName>w{i},</StreetName></AddressString>"
        for i in range(60)
    )
    xml = f"<AddressCollection>{rows}</AddressCollection>".encode()
    archive = pack(tmp_path / "a.tar.gz", {"usaddress-0.5.16/training/labeled.xml": xml})
    made = addresses.recombined(archive, 500, seed=3)
    assert made == addresses.recombined(archive, 500, seed=3)
    assert not any(is_held_back(example.text) for example in made)
    held_back = {f"w{i}" for i in range(60) if is_held_back(f"{i} w{i},")}
    assert held_back
    assert not held_back & {json.loads(example.answer)["StreetName"].lower() for example in made}
    assert len({example.text for example in made}) > 250


def test_recombined_strings_are_all_that_splicing_and_exchanging_can_make() -> None:
    strings = [(("A", "1"), ("B", "x,"), ("C", "y")), (("A", "2"), ("B", "p"), ("B", "q"), ("D", "z"))]
    made = recombine(strings, 1000, seed=0)
    labels = {"".join(label for i, (label, _) in enumerate(s) if i == 0 or s[i - 1][0] != label) for s in made}
    assert labels == {"ABC", "ABD"}
    words = {" ".join(word for _, word in string).lower() for string in made}
    commas = {f"{a} {b}, y" for a in "12" for b in ("x", "p q")}
    assert words == commas | {f"{a} {b} z" for a in "12" for b in ("x", "p q")}


def test_splicing_never_repeats_a_label() -> None:
    strings = [(("A", "1"), ("B", "2"), ("C", "3")), (("C", "4"), ("B", "5"), ("A", "6"))]
    for string in recombine(strings, 500, seed=0):
        assert sorted(label for label, _ in string) == ["A", "B", "C"] or len(string) < 3
        assert len({label for label, _ in string}) == len(string)


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        (b"<A><B><C>x</C></B>", "broken XML"),
        (b"<A><B>no label</B></A>", "row 1: the string has no labelled token"),
        (b'<!DOCTYPE x [<!ENTITY e "e">]><A/>', "a document type is not expected"),
    ],
)
def test_broken_labelled_xml_is_named(xml: bytes, said: str) -> None:
    with pytest.raises(BadData, match=f"labeled.xml.*{said}"):
        labelled_xml.read(xml, "labeled.xml")


def test_countries_have_one_capital_or_are_left_out(tmp_path: Path) -> None:
    folder = "countryinfo-1.0.1/countryinfo/data"
    said = [{"name": "Peru", "capital": "Lima"}, {"name": "Bouvet Island"}, {"name": "Two", "capital": ["A", "B"]}]
    files = {f"{folder}/{i}.json": json.dumps(one).encode() for i, one in enumerate(said)}
    found = countries.capitals(pack(tmp_path / "c.tar.gz", files | {f"{folder}/readme.txt": b"no"}))
    assert [(one.text, one.answer) for one in found] == [("Peru", " Lima"), ("Two", " A")]


def test_a_country_that_is_none_is_named() -> None:
    with pytest.raises(BadData, match=r"x\.json, row 1, column capital: 7 is no text"):
        countries.country(b'{"name": "X", "capital": 7}', "x.json")


def test_an_archive_without_the_data_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match=r"holds no usaddress-0\.5\.16/training/labeled\.xml"):
        addresses.parts_as_json(pack(tmp_path / "a.tar.gz", {"other": b""}))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [Example("a", " x", "f.csv", 1), Example("  ", " y", "f.csv", 2)],
            "f.csv, row 2, column text: the cell is em",
        ),
        ([Example("a", "", "f.csv", 1)], "f.csv, row 1, column answer: the cell is empty"),
        ([Example("a" * (1 << 21), " x", "f.csv", 1)], "f.csv, row 1, column text: the cell is larger than 1 MiB"),
        ([Example("a", " x", "f.csv", 1), Example("a", " y", "f.csv", 9)], "f.csv, row 9, column answer: this text's"),
        ([Example("a", " x", "f.csv", 1), Example("b", " x", "f.csv", 2)], "every row's answer is ' x'"),
        ([], "there are no rows"),
    ],
)
def test_rows_that_cant_be_learned_from_are_named(rows: list[Example], said: str) -> None:
    with pytest.raises(BadData, match=said):
        several(checked(rows, classes=True), "answer")


LONG = "It says more of what it does, in words enough to be a text of its own.\n" * 4
FILES = {
    "tiny/sums.py": f'''
def add(a, b):
    """Add two
    numbers as they are.

    {LONG.replace(chr(10), chr(10) + "    ")}"""

class Sum:
    """Keep a running sum of numbers.

    {LONG * 9}"""
    def _own(self):
        """Not for anybody else to call.

        {LONG}"""
    def reset(self):
        """Short."""
    def add(self):
        """Add two numbers as they are.

        another copy of {LONG}"""
    def fill(self):
        """Fill it up with all values.

        %(shared)s {LONG}"""
''',
    "tiny/in_c.py": f'''
add_newdoc("tiny", "exp", """
exp(x, out=None)

Raise e to the power of x.

{LONG}""")
''',
    "tiny/tests/test_sums.py": f'def test():\n    """Test that two numbers are added.\n\n{LONG}"""',
    "tiny/notes.txt": "no code",
}


def test_docstrings_without_their_first_lines_are_answered_by_them(tmp_path: Path) -> None:
    wheel = tmp_path / "tiny.whl"
    with zipfile.ZipFile(wheel, "w") as bundle:
        for name, text in FILES.items():
            bundle.writestr(name, text)
    found = docstrings.summaries(wheel, wheel)
    assert sorted(example.answer for example in found) == [
        " Add two numbers as they are.",
        " Keep a running sum of numbers.",
        " Raise e to the power of x.",
    ]
    by_answer = {example.answer.split()[0]: example for example in found}
    assert by_answer["Raise"].text == LONG.strip() + docstrings.CUE
    assert (by_answer["Raise"].file, by_answer["Add"].row) == ("tiny/in_c.py", 2)
    assert "copy" not in by_answer["Add"].text, "the first of equal lines"
    kept = by_answer["Keep"].text.removesuffix(docstrings.CUE)
    assert docstrings.SHORTEST < len(kept) <= docstrings.LONGEST
    assert kept.endswith("of its own."), "cut between lines"
