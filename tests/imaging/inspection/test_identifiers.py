"""Headers, ids and names that tell of persons: what is there is told, never what it says."""

from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from imaging.inspection.identifiers import (
    Header,
    Person,
    header_of,
    shared_ids,
    split_persons,
    tag_groups,
    telling_names,
)


def dataset(**tags: object) -> pydicom.Dataset:
    made = pydicom.Dataset()
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def person(patient: str, file: str, **tags: object) -> Person:
    return Person(patient, header_of(dataset(**tags)), file)


DOE = {"PatientName": "Doe^Jane", "PatientBirthDate": "19610312", "PatientSex": "F"}


def test_identifiers_are_named_and_their_values_are_nowhere() -> None:
    made = dataset(**DOE, PatientID="4711", AccessionNumber="A-9", InstitutionName="St. Anna", StudyDate="20240501")
    made.OperatorsName = ""  # an empty tag tells nothing
    inside = dataset(PatientAddress="Main Street 1")
    made.RequestAttributesSequence = [inside]
    made.add_new(0x00091001, "LO", "a private secret")
    header = header_of(made)
    assert set(header.identifiers) == {
        "PatientName", "PatientBirthDate", "PatientID", "AccessionNumber", "InstitutionName", "StudyDate",
        "PatientAddress", "RequestAttributesSequence",
    }  # fmt: skip
    assert header.private == 1
    for value in ("Doe", "DOE", "1961", "4711", "A-9", "Anna", "Main Street", "secret"):
        assert value not in repr(header)


def test_every_tag_looked_for_is_a_dicom_keyword() -> None:
    assert len(tag_groups()) > 60
    for keyword in tag_groups():
        assert pydicom.datadict.tag_for_keyword(keyword) is not None, keyword


def test_burnt_in_annotation_modality_frames_and_bits() -> None:
    header = header_of(dataset(BurnedInAnnotation="YES", Modality="US", NumberOfFrames=7, BitsStored=12))
    assert (header.burnt_in, header.modality, header.frames, header.bits) == (True, "US", 7, 12)
    assert not header_of(dataset(BurnedInAnnotation="NO")).burnt_in


@pytest.mark.parametrize(
    "change", [{"PatientName": "Roe^Jane"}, {"PatientBirthDate": "19610313"}, {"PatientSex": "M"}], ids=str
)
def test_two_persons_under_one_id(change: dict[str, str]) -> None:
    people = [person("1", "a", **DOE), person("1", "b", **DOE), person("1", "c", **{**DOE, **change})]
    assert shared_ids(people) == [["a", "c"]]
    assert shared_ids([*people[:2], person("2", "c", **{**DOE, **change})]) == []


def test_spelling_and_missing_tags_are_no_other_person() -> None:
    same = [{**DOE, "PatientName": "DOE^JANE"}, {**DOE, "PatientName": "doe jane^"}, {"PatientSex": "F"}, {}]
    assert shared_ids([person("1", str(number), **tags) for number, tags in enumerate([DOE, *same])]) == []


def test_one_person_under_two_ids() -> None:
    people = [person("1", "a", **DOE), person("1", "b", **DOE), person("2", "c", **DOE)]
    assert split_persons(people) == [["a", "c"]]
    other = {**DOE, "PatientBirthDate": "19700101"}
    assert split_persons([person("1", "a", **DOE), person("2", "b", **other)]) == []


def test_placeholders_are_nobody() -> None:
    for name in ("ANONYMOUS", "Anon^001", "DE-IDENTIFIED", "unknown", "XXXX"):
        tags = {**DOE, "PatientName": name}
        assert split_persons([person("1", "a", **tags), person("2", "b", **tags)]) == []
    many = [person(str(number), str(number), **DOE) for number in range(4)]  # a name that four patients share
    assert split_persons(many) == []


def test_a_real_file() -> None:
    header = header_of(pydicom.dcmread(Path(str(get_testdata_file("CT_small.dcm"))), stop_before_pixels=True))
    assert isinstance(header, Header)
    assert header.modality == "CT" and header.private > 0 and "PatientName" in header.identifiers


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("scan_20240501.png", "date"),
        ("2024-05-01/a.png", "date"),
        ("x/31.12.2023.png", "date"),
        ("48392017/a.png", "record number"),
        ("Smith_John/a.png", "person's name"),
        ("Smith, John.png", "person's name"),
        ("1.2.840.113619.2.5.1762583153.215519.978957063.78/a.dcm", None),
        ("patient7/slice_0012.png", None),
        ("A0001_3.png", None),
    ],
)
def test_names_of_files(file: str, kind: str | None) -> None:
    assert telling_names([file]) == ({} if kind is None else {kind: [file]})
