"""DICOM series of pretend patients, as an MR scanner exports them: with all that a header says of a person."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from foundation.randomness import numpy_generator

SERIES_LENGTH = 4
SPACING_MM = (5.0, 3.0, 3.0)  # slice to slice, row to row, column to column
_BITS = 12
_NAMES = ("Ada", "Ben", "Cleo", "Dov", "Edda", "Finn", "Gwen", "Hugo", "Ines", "Jon", "Kaja", "Luis")


def person(patient: str) -> Dataset:
    """What a header says of an invented person, the same for each of the patient's files."""
    draw = numpy_generator(0, "pretend person", patient)
    number = int(patient[1:])
    answer = Dataset()
    answer.PatientName = f"Nobody^{_NAMES[number % len(_NAMES)]}^{patient}"
    answer.PatientID = patient
    answer.PatientBirthDate = f"{draw.integers(1931, 2001)}{draw.integers(1, 13):02}{draw.integers(1, 29):02}"
    answer.PatientSex = str(draw.choice(["F", "M"]))
    answer.PatientAddress = f"{draw.integers(1, 200)} Nowhere Lane, Inventedtown"
    answer.PatientComments = f"Invented comment on patient {patient}: looks forward to a holiday"
    answer.AccessionNumber = f"ACC{draw.integers(10**7, 10**8)}"
    answer.StudyDate = f"2024{draw.integers(1, 13):02}{draw.integers(1, 29):02}"
    answer.StudyTime = f"{draw.integers(7, 19):02}{draw.integers(0, 60):02}00"
    answer.InstitutionName = "Invented Hospital North"
    answer.ReferringPhysicianName = "Nobody^Doctor"
    answer.OperatorsName = "Nobody^Operator"
    return answer


def write_series(folder: Path, patient: str, slices: list[NDArray[np.uint16]]) -> list[Path]:
    """Write ``slices`` ([row, column] of full 16 bits) as series of ``SERIES_LENGTH``, a folder each; the files."""
    about = person(patient)
    place = folder / patient / str(about.StudyDate)
    files = []
    for start in range(0, len(slices), SERIES_LENGTH):
        number = start // SERIES_LENGTH + 1
        series = place / f"series-{number}"
        series.mkdir(parents=True)
        for index, pixels in enumerate(slices[start : start + SERIES_LENGTH]):
            files.append(series / f"IM{index + 1:04}.dcm")
            _image(about, number, index, pixels).save_as(files[-1], enforce_file_format=True)
    return files


def _image(about: Dataset, series: int, index: int, pixels: NDArray[np.uint16]) -> Dataset:
    """One file: who, which series, where in the patient, and the image with 12 of its bits."""
    patient = str(about.PatientID)
    answer = Dataset()
    answer.update(about)
    answer.SOPClassUID, answer.SOPInstanceUID = MRImageStorage, _uid(patient, series, index)
    answer.StudyInstanceUID, answer.SeriesInstanceUID = _uid(patient), _uid(patient, series)
    answer.FrameOfReferenceUID, answer.PositionReferenceIndicator = _uid(patient, "frame"), ""
    answer.StudyID, answer.SeriesNumber, answer.InstanceNumber = "1", series, index + 1
    answer.SeriesDescription = f"axial head, stack {series}"
    answer.Modality, answer.Manufacturer, answer.StationName = "MR", "Invented Scanners", "NORTH-MR-1"
    answer.ImageType, answer.PatientPosition = ["ORIGINAL", "PRIMARY", "OTHER"], "HFS"
    answer.ScanningSequence, answer.SequenceVariant, answer.ScanOptions = "SE", "NONE", ""
    answer.MRAcquisitionType, answer.EchoTime, answer.RepetitionTime, answer.EchoTrainLength = "2D", "90", "3000", "1"
    apart, rows, columns = SPACING_MM
    answer.PixelSpacing, answer.SliceThickness = [rows, columns], apart
    answer.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    corner = [-columns * pixels.shape[1] / 2, -rows * pixels.shape[0] / 2]
    answer.ImagePositionPatient = [*corner, apart * ((series - 1) * SERIES_LENGTH + index)]
    answer.SamplesPerPixel, answer.PhotometricInterpretation = 1, "MONOCHROME2"
    answer.Rows, answer.Columns = pixels.shape
    answer.BitsAllocated, answer.BitsStored, answer.HighBit, answer.PixelRepresentation = 16, _BITS, _BITS - 1, 0
    answer.PixelData = (pixels >> (16 - _BITS)).astype("<u2").tobytes()
    answer.file_meta = FileMetaDataset()
    answer.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return answer


def _uid(*names: str | int) -> UID:
    """The same for the same names, as every file of a pretend patient is."""
    return generate_uid(entropy_srcs=["fedpretext pretend hospitals", *map(str, names)])
