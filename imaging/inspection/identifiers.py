"""What images say of persons: DICOM headers, file names, and patient ids that do not fit the persons.

Only what is there is told (which tags, in how many files), never what it says. Names and birth dates are compared by
keyed hashes that live as long as the process.
"""

import hashlib
import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import pydicom

from foundation.wording import words

_KEY = secrets.token_bytes(32)
_PLACEHOLDER = re.compile(r"anon|de.?ident|unknown|removed|none|^x+$|^0*$|^19000101$", re.IGNORECASE)
_SHARED_NAME = 3  # more patients of one name and birth date than this: a placeholder, not a person
# Of PS3.15, table E.1-1 (basic profile), what names or finds a person or a place, free text that often does, and days.
PERSON_TAGS = words("""
    PatientName PatientID PatientBirthDate PatientBirthTime PatientBirthName PatientMotherBirthName PatientAddress
    PatientTelephoneNumbers PatientTelecomInformation OtherPatientIDs OtherPatientNames OtherPatientIDsSequence
    PatientInsurancePlanCodeSequence PatientReligiousPreference ResponsiblePerson ResponsibleOrganization
    MedicalRecordLocator CurrentPatientLocation PatientInstitutionResidence CountryOfResidence RegionOfResidence
    Occupation MilitaryRank BranchOfService EthnicGroup AccessionNumber AdmissionID ServiceEpisodeID StudyID
    IssuerOfPatientID IssuerOfAdmissionID RequestedProcedureID PlacerOrderNumberImagingServiceRequest
    FillerOrderNumberImagingServiceRequest PersonName PersonAddress PersonTelephoneNumbers VerifyingObserverName
""")
PLACE_TAGS = words("""
    InstitutionName InstitutionAddress InstitutionalDepartmentName InstitutionCodeSequence ReferringPhysicianName
    ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers ConsultingPhysicianName PerformingPhysicianName
    PhysiciansOfRecord NameOfPhysiciansReadingStudy RequestingPhysician ScheduledPerformingPhysicianName OperatorsName
    RequestingService StationName PerformedStationName PerformedStationAETitle PerformedLocation DeviceSerialNumber
    DetectorID GantryID PlateID CassetteID HumanPerformerName HumanPerformerOrganization
""")
TEXT_TAGS = words("""
    PatientComments ImageComments AdditionalPatientHistory StudyComments AdmittingDiagnosesDescription
    RequestAttributesSequence RequestedProcedureDescription ReasonForStudy StudyDescription SeriesDescription
    ProtocolName MedicalAlerts Allergies SpecialNeeds PatientState
""")
DATE_TAGS = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate", "AcquisitionDateTime")
_GROUPS = {"person": PERSON_TAGS, "hospital or staff": PLACE_TAGS, "free text": TEXT_TAGS, "date": DATE_TAGS}


@dataclass(frozen=True)
class Header:
    """What a DICOM header holds, without its values.

    patient, name, birth and sex are keyed hashes, "" where the header says nothing (or, of names and dates, holds a
    placeholder).
    """

    identifiers: tuple[str, ...]
    private: int
    burnt_in: bool
    modality: str
    frames: int
    bits: int
    patient: str
    name: str
    birth: str
    sex: str


def header_of(dataset: pydicom.Dataset) -> Header:
    """Look through a data set, its sequences included."""
    found, private = set(), 0
    for element in dataset.iterall():
        private += element.tag.is_private
        if element.keyword in tag_groups() and not element.is_empty:
            found.add(str(element.keyword))
    name, birth = _text(dataset, "PatientName"), _text(dataset, "PatientBirthDate")
    return Header(
        identifiers=tuple(sorted(found)),
        private=private,
        burnt_in=_text(dataset, "BurnedInAnnotation") == "YES",
        modality=_text(dataset, "Modality"),
        frames=int(dataset.get("NumberOfFrames", 1) or 1),
        bits=int(dataset.get("BitsStored", 0) or 0),
        patient=_hashed(_text(dataset, "PatientID")),
        name="" if _PLACEHOLDER.search(name) else _hashed(name),
        birth="" if _PLACEHOLDER.search(birth) else _hashed(birth),
        sex=_hashed(_text(dataset, "PatientSex")),
    )


@cache
def tag_groups() -> dict[str, str]:
    """What kind of thing each tag tells: "person", "hospital or staff", "free text" or "date"."""
    return {tag: group for group, tags in _GROUPS.items() for tag in tags}


def _text(dataset: pydicom.Dataset, tag: str) -> str:
    """A tag's value without regard to case, spaces and the separators of names."""
    return " ".join(re.split(r"[\s^=]+", str(dataset.get(tag) or "").upper())).strip()


def _hashed(text: str) -> str:
    return hashlib.blake2b(text.encode(), key=_KEY, digest_size=12).hexdigest() if text else ""


@dataclass(frozen=True)
class Person:
    """One image's patient as the manifest has it, and what its header says of the person."""

    patient: str
    header: Header
    file: str


def shared_ids(people: Sequence[Person]) -> list[list[str]]:
    """Groups of files, a file a person, that have one patient id but differ in name, birth date or sex.

    A header that leaves one of them out agrees with every other.
    """
    by_patient: dict[str, list[Person]] = defaultdict(list)
    for person in people:
        by_patient[person.patient].append(person)
    found = []
    for members in by_patient.values():
        for part in ("name", "birth", "sex"):
            values = {value: person.file for person in reversed(members) if (value := getattr(person.header, part))}
            if len(values) > 1:
                found.append(sorted(values.values()))
                break
    return found


def split_persons(people: Sequence[Person]) -> list[list[str]]:
    """Groups of files, a file an id, whose headers have one name and one birth date but several patient ids."""
    by_person: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for person in people:
        if person.header.name and person.header.birth:
            by_person[person.header.name, person.header.birth].setdefault(person.patient, person.file)
    return [sorted(ids.values()) for ids in by_person.values() if 1 < len(ids) <= _SHARED_NAME]


_YEAR, _MONTH, _DAY = r"(?:19|20)\d\d", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
_DATE = re.compile(rf"(?<!\d)(?:{_YEAR}[-_.]?{_MONTH}[-_.]?{_DAY}|{_DAY}[-_.]{_MONTH}[-_.]{_YEAR})(?!\d)")
_NUMBER = re.compile(r"(?<![\d.])\d{6,10}(?![\d.]*\d)")
_NAME = re.compile(r"(?<![A-Za-z])[A-Z][a-z]{2,}(?:\s*[_,^]\s*|\s+)[A-Z][a-z]{2,}(?![A-Za-z])")
_UID = re.compile(r"\d+(?:\.\d+){4,}")


def telling_names(files: Iterable[str]) -> dict[str, list[str]]:
    """Paths whose folder or file names look like a date, a record number or a person's name, by that kind."""
    found: dict[str, list[str]] = {}
    for file in files:
        text = _UID.sub(" ", file)
        for kind, pattern in (("date", _DATE), ("record number", _NUMBER), ("person's name", _NAME)):
            if pattern.search(text):
                found.setdefault(kind, []).append(file)
                break
    return found
