"""Sections of data that have labels, or numbers to predict."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Count, File, Fraction, Line, Section, Seed, Text

TABLES = ("diamonds", "penguins")  # CSV files that fs.datasets finds
Encoding = Annotated[
    Literal["utf-8", "latin-1", "cp1252"],
    Field(description="How the characters of the files are written as bytes."),
]
Name = Annotated[str, Field(pattern=r"^[^\x00]+$")]


class Splits(Section):
    """How samples are divided; the same for all kinds of data with labels."""

    validation_split: Fraction = Field(
        default=0.0,
        description="Share of the samples that is only validated on, with all classes "
        "in proportion.",
    )
    test_split: Fraction = Field(
        default=0.0,
        description="Share that is neither trained nor validated on, for fastserve "
        "evaluate --split test.",
    )
    split_seed: Seed = Field(
        default=0, description="Decides which samples are in which part."
    )
    drop_duplicates: bool = Field(
        default=False,
        description="Leave out samples whose input equals an earlier one's.",
    )


class Vectorize(Section):
    """How texts become numbers (Keras' TextVectorization)."""

    max_tokens: Count | None = Field(
        default=20_000,
        description="Most different tokens, the most frequent ones; null: all.",
    )
    output_mode: Literal["int", "multi_hot", "count", "tf_idf"] = Field(
        default="tf_idf",
        description="A text becomes the numbers of its tokens, or for each known token "
        "whether, how often, or how tellingly it is in the text.",
    )
    sublinear: bool = Field(
        default=False,
        description="Of count and tf_idf: n occurrences count as 1 + log n.",
    )
    ngrams: Count = Field(
        default=1, description="Tokens are words, and up to so many in a row."
    )
    standardize: Literal[
        "lower_and_strip_punctuation", "lower", "strip_punctuation", "none"
    ] = Field(
        default="lower_and_strip_punctuation",
        description="What is done to a text first.",
    )
    split: Literal["whitespace", "character"] = Field(
        default="whitespace", description="What a token is."
    )
    output_sequence_length: Count | None = Field(
        default=None,
        description="Tokens that a text is cut or filled up to; needed for int.",
    )


class Words(Section):
    """How sentences of words become numbers."""

    max_words: Count = Field(
        default=30_000, description="Most different words, the most frequent."
    )
    min_count: Count = Field(
        default=2, description="Rarer words are told by their ending and capital alone."
    )
    length: Count = Field(
        default=64, description="Words of a row; longer sentences take several rows."
    )


class IdxData(Splits):
    """Arrays in IDX files, as MNIST's, gzipped or not."""

    type: Literal["idx"] = Field(description="The kind of data.")
    train_images: File = Field(description="Inputs to train on.")
    train_labels: File = Field(description="Their classes, integers from 0.")
    test_images: File | None = Field(
        default=None, description="Inputs of the test part; null: test_split."
    )
    test_labels: File | None = Field(default=None, description="Their classes.")
    normalize: bool = Field(
        default=True, description="Divide integers by the largest of their type."
    )
    channel: bool = Field(
        default=True, description="Give images of two axes a third one, of size 1."
    )
    class_names: list[Line] | None = Field(
        default=None, description="Names of the classes; null: their numbers."
    )


class _Table(Splits):
    file: File
    validation: File | None = Field(
        default=None, description="The same to validate on; null: validation_split."
    )
    test: File | None = Field(
        default=None, description="The same to test on; null: test_split."
    )
    target: Name = Field(description="Name of the column to predict.")
    task: Literal["classification", "regression"] = Field(
        description="Whether the target is a class or a number."
    )
    features: list[Name] | None = Field(
        default=None, description="Names of the input columns; null: all but target."
    )
    categorical: list[Name] = Field(
        default=[],
        description="Columns of categories that look like numbers; texts are anyway.",
    )
    categories: Literal["one_hot", "index"] = Field(
        default="one_hot",
        description="What a category becomes: one input for each, or its number, "
        "counted from 1.",
    )
    missing: Literal["refuse", "drop", "fill"] = Field(
        default="refuse",
        description="A missing value is an error, or its record is left out, or it "
        "becomes the training part's mean, or no category.",
    )
    missing_values: list[Text] = Field(
        default=["", "NA", "NaN", "nan", "null"],
        description="Texts that stand for a missing value.",
    )
    standardize: bool = Field(
        default=True,
        description="Subtract the training part's mean from numbers, and divide by "
        "its deviation.",
    )
    encoding: Encoding = "utf-8"


class CsvData(_Table):
    """A table with headers in a CSV file."""

    type: Literal["csv"] = Field(description="The kind of data.")
    file: File = Field(
        description="The CSV file, or a built-in table (diamonds, penguins)."
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = Field(
        default=",", description="What stands between two fields."
    )


class JsonlData(_Table):
    """A table of JSON objects, one a line; lists of numbers are allowed."""

    type: Literal["jsonl"] = Field(description="The kind of data.")
    file: File = Field(description="The .jsonl file.")


class ImagesData(Splits):
    """PNG, JPEG, PGM or PPM images in a folder for each class."""

    type: Literal["images"] = Field(description="The kind of data.")
    folder: File = Field(description="The folder of the classes' folders.")
    validation: File | None = Field(
        default=None, description="The same to validate on; null: validation_split."
    )
    test: File | None = Field(
        default=None, description="The same to test on; null: test_split."
    )
    size: list[Count] = Field(
        min_length=2, max_length=2, description="Height and width to resize to."
    )
    channels: Literal[1, 3] = Field(default=3, description="1: grey, 3: colours.")


class TextsData(Splits):
    """Texts with a class each."""

    type: Literal["texts"] = Field(description="The kind of data.")
    source: File = Field(
        description="A folder with a folder of text files for each class, or a .csv "
        "or .jsonl file."
    )
    validation: File | None = Field(
        default=None, description="The same to validate on; null: validation_split."
    )
    test: File | None = Field(
        default=None, description="The same to test on; null: test_split."
    )
    text: Name = Field(default="text", description="Column or key of the text.")
    label: Name = Field(default="label", description="Column or key of the class.")
    encoding: Encoding = "utf-8"
    vectorize: Vectorize = Field(
        default=Vectorize(), description="How texts become numbers."
    )


class TaggedData(Splits):
    """Sentences whose words have a tag each."""

    type: Literal["tagged"] = Field(description="The kind of data.")
    file: File = Field(description="The file to train on.")
    validation: File | None = Field(
        default=None, description="The same to validate on; null: validation_split."
    )
    test: File | None = Field(
        default=None, description="The same to test on; null: test_split."
    )
    format: Literal["columns", "slashes"] = Field(
        default="columns",
        description="columns: a word a line, its tag in the last column, a blank line "
        "after a sentence; slashes: a sentence a line, as word/tag.",
    )
    encoding: Encoding = "utf-8"
    words: Words = Field(default=Words(), description="How words become numbers.")


class DatasetData(Splits):
    """One of the data sets that fastserve knows; see fastserve datasets."""

    type: Literal["dataset"] = Field(description="The kind of data.")
    name: Literal[
        "fashion-mnist",
        "digits",
        "mnist-sample",
        "spam",
        "news",
        "film-sentiment",
        "tagged-words",
    ] = Field(description="Which one.")
    vectorize: Vectorize = Field(
        default=Vectorize(), description="How texts become numbers."
    )
    words: Words = Field(default=Words(), description="How words become numbers.")


Labelled = (
    IdxData | CsvData | JsonlData | ImagesData | TextsData | TaggedData | DatasetData
)
LABELLED = ("idx", "csv", "jsonl", "images", "texts", "tagged", "dataset")
