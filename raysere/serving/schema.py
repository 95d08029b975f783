"""The schemas of requests and answers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Item(BaseModel):
    """One clip, its transcript, or both."""

    model_config = ConfigDict(extra="forbid", strict=True)

    audio: str | None = Field(None, description="Base64 (RFC 4648) of an audio file: wav, flac, ogg, mp3 and what else libsndfile reads.")
    text: str | None = Field(None, description="What is said.")
    language: str | None = Field(None, max_length=35, description="BCP 47 code, such as de or pt-BR.")
    corpus: str | None = Field(None, max_length=100, description="Training corpus that the recording is like, for members that ask.")
    speaker: str | None = Field(
        None, max_length=100, description="Items of one batch by the same speaker are normalised together by members that do so."
    )


class PredictRequest(Item):
    trace: bool = Field(False, description="Answer for each segment of the clip, too.")
    votes: bool = Field(True, description="Say what each member answers.")


class BatchRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    items: list[Item] = Field(min_length=1)
    votes: bool = Field(False, description="Say what each member answers.")


class ErrorBody(BaseModel):
    code: str = Field(description="Stable name of the fault.")
    status: int
    message: str
    remedy: str | None


class ErrorResponse(BaseModel):
    error: ErrorBody


class Attribute(BaseModel):
    value: float
    scale: tuple[float, float] = Field(description="Lowest and highest value that there can be.")


class Answer(BaseModel):
    """Probabilities are calibrated on held-out speakers; ``confidence`` is that of the predicted
    class.
    """

    predicted: str | None
    confidence: float | None
    probabilities: dict[str, float]
    attributes: dict[str, Attribute]


class Vote(BaseModel):
    member: str
    modality: str
    share: float = Field(description="Of the answer, where all members that answered share 1.")
    probabilities: dict[str, float]


class Segment(Answer):
    start_s: float
    end_s: float


class Audio(BaseModel):
    """What was sent."""

    seconds: float
    sampling_rate: int
    channels: int


class Prediction(Answer):
    members: int = Field(description="How many members answered.")
    note: str | None = Field(description="What was missing, where the answer lacks something.")
    audio: Audio | None
    votes: list[Vote] | None = None
    segments: list[Segment] | None = None


class PredictResponse(Prediction):
    model: str = Field(description="Fingerprint of the ensemble that answered.")


class BatchResponse(BaseModel):
    model: str
    results: list[Prediction | ErrorResponse] = Field(description="One an item, in their order.")


class Health(BaseModel):
    status: str
    model: str
