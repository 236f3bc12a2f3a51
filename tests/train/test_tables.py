"""Tables of texts: marks, quotes, line ends, headers, columns, rows of another width; and labels by name."""

import csv
import io
import random

import pytest

import zoo
from train import LabelledTextData, PairData
from train.data.tables import read_table
from zoo.inputs.text import TextInputs

BOM = "\ufeff"
ROWS = [("good film", "pos"), ("bad film", "neg")] * 10
PLAIN = "".join(f"{text}\t{label}\n" for text, label in ROWS)


def labelled(path, content, **settings):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return LabelledTextData(path=str(path), context=8, validation_fraction=0.0, **settings).load((8,))


def texts(dataset):
    """The texts and labels of the training split of a character or word vocabulary."""
    batch, inputs = dataset.train.arrays, dataset.inputs
    rows = zip(batch["tokens"], batch["length"], batch["label"], strict=True)
    return [(inputs.decode(row[:length]), inputs.labels[label]) for row, length, label in rows]


@pytest.mark.parametrize("mark", ["", BOM])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("header", ["", "text\tlabel\n", "Sentence\tCategory\n", "phrase\tlabel\n"])
def test_marks_line_ends_and_headers_are_no_data(tmp_path, mark, end, header):
    dataset = labelled(tmp_path / "t.tsv", (mark + header + PLAIN).replace("\n", end), tokenizer="word")
    assert dataset.inputs.labels == ("neg", "pos")
    assert texts(dataset) == ROWS
    assert dataset.notes == (
        (f"t.tsv: texts from column {header.split(chr(9))[0]!r}, labels from {header.split(chr(9))[1].strip()!r}",)
        if header
        else ()
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_any_texts_in_a_quoted_table_come_back(tmp_path, delimiter, quoting):
    """Whatever a spreadsheet writes: quotes, delimiters, line ends and long texts within a cell."""
    rng = random.Random(0)
    for number in range(60):
        pool = ["a", "b c", ",", ";", "\t", '"', '""', "\n", "\r", "\r\n", "é", "日", "'", " ", "x" * 140_000]
        rows = [["".join(rng.choices(pool[: 14 + (number == 0)], k=5)) + "z", str(i % 3)] for i in range(9)]
        file = io.StringIO()
        csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\r\n").writerows(rows)
        path = tmp_path / ("t.tsv" if delimiter == "\t" else "t.csv")
        path.write_bytes((BOM * (number % 2) + file.getvalue()).encode())
        expected = [[cell.replace("\r\n", "\n") for cell in row] for row in rows]
        assert [cells for _, cells in read_table(path).rows] == expected


def test_quotes_in_a_table_of_tabs_are_characters(tmp_path):
    rows = [['"Great" she said', "1"], ['12" pipe', "2"], ['"quoted whole"', "1"], ["5'4\"", "2"]]
    (tmp_path / "t.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    assert [cells for _, cells in read_table(tmp_path / "t.tsv").rows] == rows


def test_a_quoted_column_loses_its_quotes(tmp_path):
    (tmp_path / "t.tsv").write_text('"text"\t"label"\n"good"\t1\n"bad"\t0\n')  # numbers are not quoted
    assert [cells for _, cells in read_table(tmp_path / "t.tsv").rows] == [
        ["text", "label"],
        ["good", "1"],
        ["bad", "0"],
    ]


def test_a_return_within_a_text_is_a_character(tmp_path):
    for name, tab in (("t.tsv", "\t"), ("t.csv", ",")):
        (tmp_path / name).write_bytes(f"good\rfilm{tab}pos\nbad{tab}neg\n".encode())
        assert [cells for _, cells in read_table(tmp_path / name).rows] == [["good\rfilm", "pos"], ["bad", "neg"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", PLAIN + "fine\tfilm\tpos\n", r"row 21 has 3 columns, not 2 as row 1: \['fine', 'film', 'pos'\]"),
        ("t.tsv", "text\tlabel\n\n" + PLAIN + "fine\n", "row 23 has 1 columns, not 2 as row 1"),
        ("t.csv", 'text,label\n"a\nb",x\na,y,z\n', r"row 4 has 3 columns, not 2 as row 1"),
        ("t.csv", 'text,label\n"a"b,x\nc,y\n', r"is not a CSV: row 2: ',' expected after '\"'"),
        ("t.csv", 'text,label\n"a,x\nc,y\n', r"is not a CSV: row 2: unexpected end of data"),
        ("t.tsv", "good\t\nbad\tneg\n", "row 1 has no label"),
        ("t.tsv", "text\tlabel\n", "has no row but its header"),
        ("t.tsv", "\ufeff", "is empty"),
        ("t.csv", '""\n', "is empty"),
        ("t.tsv", PLAIN.encode("utf-16"), "is UTF-16, not UTF-8 text; save it as UTF-8"),
        ("t.tsv", PLAIN.encode("utf-16-le"), "is not text: it has a zero byte at 1"),
        ("t.tsv", (BOM + "caf").encode() + b"\xe9\tx\n", "is not UTF-8 text: byte 0xe9 at 6"),
        ("t.tsv", "a\0b\tx\nc\ty\n", "is not text: it has a zero byte at 1"),
        ("t.tsv", "pos\tgood film\npos\tgreat\nneg\tbad\n", r"has 3 labels in 3 rows, such as 'bad'; name the columns"),
        (
            "t.tsv",
            "".join(f"{i}\tlabel {i}\n" for i in range(60)),
            r"60 labels in 60 rows, .* with data\.columns",
        ),
        ("t.tsv", "phrase\tscore\n" + PLAIN, "may be a header, since its label 'score' occurs once; name the"),
        ("t.tsv", "phrase\tscore\na\trare\n" + PLAIN, "may be a header, since its label 'score' occurs once; name the"),
        ("t.tsv", "premise\thypothesis\tlabel\na\tb\tx\n", r"has 3 columns: premise \| hypothesis \| label; name the"),
        ("t.tsv", "title\ttext\tlabel\na\tb\tx\n", "has 3 columns"),
        ("t.tsv", "a\tb\tx\nc\td\ty\n", "has 3 columns"),
        ("t.tsv", "index\tlabel\n1\tx\n2\ty\n", "has 2 columns: index"),
        ("t.tsv", "sentence\tscore\na\t1\nb\t2\n", "has no column of labels: its first row is sentence"),
    ],
)
def test_what_is_not_clear_is_refused_in_one_line(tmp_path, name, content, message):
    with pytest.raises(zoo.ZooError, match=message) as error:
        labelled(tmp_path / name, content)
    assert "\n" not in str(error.value)


COLA = "".join(f"src{i % 3}\t{i % 2}\t*\tThe book {i}.\n" for i in range(40))


@pytest.mark.parametrize(
    ("content", "columns", "first"),
    [
        (COLA, ["4", "2"], ("The book 0.", "0")),
        ("Quality\t#1 ID\t#1 String\n1\t7\tA b.\n0\t8\tC d.\n", ["#1 string", "Quality"], ("A b.", "1")),
        ("title\ttext\tlabel\na\tb\tx\nc\td\ty\n", ["text", "label"], ("b", "x")),
        ("title\ttext\tlabel\na\tb\tx\nc\td\ty\n", ["2", "3"], ("b", "x")),
        ("label\tsentence\tnote\ny\tb\tx\nn\td\ty\n", [], ("b", "y")),
    ],
)
def test_columns_are_asked_for_by_name_or_by_number(tmp_path, content, columns, first):
    dataset = labelled(tmp_path / "t.tsv", content, columns=columns)
    assert texts(dataset)[0] == (first[0][:8], first[1])


def test_wrong_columns_are_named(tmp_path):
    for columns, message in {
        ("nothing", "2"): r"has no column 'nothing'; its first row is src0 \| 0",
        ("5", "2"): "has no column '5'",
        ("4", "4"): r"data\.columns 4 4 are one column of",
    }.items():
        with pytest.raises(zoo.ZooError, match=message):
            labelled(tmp_path / "t.tsv", COLA, columns=list(columns))
    with pytest.raises(zoo.ZooError, match=r"data\.columns must be two, the text's and the label's, not \['4'\]"):
        LabelledTextData(columns=["4"]).check()
    with pytest.warns(UserWarning, match="may be a header, since its label 'Quality' occurs once"):
        labelled(tmp_path / "t.tsv", "Quality\tID\tString\n" + "1\t7\tA\n0\t8\tB\n" * 3, columns=["3", "1"])


def test_a_small_held_out_table_without_a_header_keeps_its_first_row(tmp_path):
    (tmp_path / "train.tsv").write_text("a\tx\nb\ty\nc\tz\n" * 3)
    (tmp_path / "test.tsv").write_text("a\tx\nb\ty\nb\ty\nc\tz\nc\tz\n")
    assert LabelledTextData(path=str(tmp_path), context=8).load((8,)).test.size == 5


def test_a_table_of_many_labels_is_one_if_they_occur_again(tmp_path):
    rows = "".join(f"text {i}\tlabel {i % 60}\n" for i in range(180))
    assert len(labelled(tmp_path / "t.tsv", rows).inputs.labels) == 60


def test_labels_of_a_model_are_matched_by_name(tmp_path):
    known = TextInputs("byte", "", 8, ("neg", "neutral", "caf\u00e9", "pos"))
    (tmp_path / "t.tsv").write_text("a\tpos\nb\tcafe\u0301\nc\tneg\n")
    source = LabelledTextData(path=str(tmp_path / "t.tsv"), validation_fraction=0.0)
    dataset = source.load((8,), known)
    assert dataset.inputs is known
    assert dataset.train.arrays["label"].tolist() == [3, 2, 0]
    assert dataset.notes == ("t.tsv has 3 of the model's 4 labels",)
    own = source.load((8,), TextInputs("byte", "", 8))  # weights to fine-tune: the vocabulary is theirs, the labels new
    assert (own.inputs.tokenizer, own.inputs.labels) == ("byte", ("caf\u00e9", "neg", "pos"))
    (tmp_path / "t.tsv").write_text("a\tpos\n")
    assert source.load((8,), known).train.arrays["label"].tolist() == [3]
    (tmp_path / "t.tsv").write_text("a\tpos\nb\tgreat\n")
    with pytest.raises(zoo.ZooError, match=r"1 labels that the model does not have \(great\)"):
        source.load((8,), known)


# Tables of pairs.


@pytest.mark.parametrize(
    ("content", "settings", "first"),
    [
        (BOM + "hund\tdog\nkatze\tcat\n", {}, ("hund", "dog")),
        ("source\ttarget\nhund\tdog\n\t\n\n", {}, ("hund", "dog")),
        ("Answer\tQuestion\nhund\tdog\n", {}, ("dog", "hund")),
        (BOM + "DE\tEN\r\nhund\tdog\r\n", {}, ("hund", "dog")),
        ("de\ten\nhund\tdog\n", {"source": "en", "target": "de"}, ("dog", "hund")),
        ("hund\tdog\n", {"source": "de", "target": "en"}, ("hund", "dog")),  # a recipe's names, of TFDS's features
        ("dog\thund\tCC-BY\n", {"source": "2", "target": "1"}, ("hund", "dog")),
        ("id\tde\ten\n7\thund\tdog\n", {"source": "de", "target": "en"}, ("hund", "dog")),
    ],
)
def test_columns_of_pairs(tmp_path, content, settings, first):
    (tmp_path / "p.tsv").write_bytes(content.encode())
    source = PairData(path=str(tmp_path / "p.tsv"), validation_fraction=0.0, **settings)
    source.check()
    assert source.load(()).train.texts[0] == first


def test_pairs_in_a_csv_and_wrong_columns_of_pairs(tmp_path):
    (tmp_path / "p.csv").write_text('de,en\n"ja, gut","yes, good"\n')
    assert PairData(path=str(tmp_path / "p.csv"), validation_fraction=0.0).load(()).train.texts == [
        ("ja, gut", "yes, good")
    ]
    (tmp_path / "p.tsv").write_text("a\tb\tc\n")
    with pytest.raises(zoo.ZooError, match=r"row 1 is not a source and a target .*; data\.source and data\.target"):
        PairData(path=str(tmp_path / "p.tsv")).load(())
    with pytest.raises(zoo.ZooError, match=r"has no column 'fr'; its first row is a \| b \| c"):
        PairData(path=str(tmp_path / "p.tsv"), source="fr", target="2").load(())
    (tmp_path / "p.tsv").write_text("source\ttarget\n")
    with pytest.raises(zoo.ZooError, match="has no row but its header"):
        PairData(path=str(tmp_path / "p.tsv")).load(())
    with pytest.raises(zoo.ZooError, match=r"data\.source and data\.target go together"):
        PairData(path="p.tsv", source="2").check()
