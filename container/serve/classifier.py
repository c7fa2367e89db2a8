"""The default steps of a model with a signature: images in, class probabilities out."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch

from container.images import ImageError, ImageTooLarge, decode_image
from container.model import ModelSignature, normalize, resize_image
from container.serve import codec, lines
from container.serve.batch_size import rows_at_once
from container.serve.call import Call
from container.serve.exchange import BadRequest, BodyTooLarge, UnsupportedMediaType
from container.serve.interface import Interface
from container.serve.tuning import Network, fastest_form

CONTENT_TYPES = (codec.IMAGE, "image/*", *codec.ARRAY_TYPES, *codec.RECORD_TYPES)


class ImageClassifier:
    """Images or pixel values in, class probabilities out. See `ModelSignature` for what the network was trained on."""

    def __init__(
        self,
        network: torch.nn.Module,
        signature: ModelSignature,
        device: str,
        default_accept: str,
        placeholders: bool = False,
    ) -> None:
        self.model: torch.nn.Module | None = network
        """As it was loaded: what the user's functions get; None where they are none and another form is served."""
        self.network: Network = network
        """[B, C, H, W] -> logits [B, num_classes]; on `device`, in eval mode."""
        self.signature = signature
        self.placeholders = placeholders
        """Whether a bad line of CSV or JSON Lines gets a placeholder instead of failing the whole request."""
        self.device = device
        self.default_accept = default_accept
        self.only_torch = True  # the network is one of torchvision's or ours

    def decode(self, call: Call) -> Any:
        """The request's images as the network's input, float32 [B, C, H, W] on the CPU.

        Raises:
            UnsupportedMediaType: neither an image nor one of the array formats.
            BadRequest: undecodable, or of another shape than the network was trained on.
        """
        kind = codec.media_type(call.request.headers.get("content-type"))
        if codec.is_image(kind):
            return normalize(self._pixels_of_image(call.request.body)[None], self.signature)
        if kind not in (*codec.ARRAY_TYPES, *codec.RECORD_TYPES):
            raise UnsupportedMediaType(f"Content-Type {kind!r} is not served here", known=list(CONTENT_TYPES))
        if self.placeholders and kind in lines.TYPES:
            good = lines.read_records(call, kind, lambda record, number: self._pixels_of_record(record, number, kind))
            images = [pixels for _, _, pixels in good]
            return normalize(torch.cat(images), self.signature) if images else lines.NO_RECORDS
        if kind in codec.RECORD_TYPES:
            return normalize(self._pixels_of_records(codec.decode_records(call.request.body, kind)), self.signature)
        return normalize(self._pixels_of_array(self._values(call.request.body, call, kind)), self.signature)

    def _pixels_of_records(self, records: np.ndarray | list[bytes]) -> torch.Tensor:
        if isinstance(records, np.ndarray):
            return self._pixels_of_array(records)
        return torch.stack([self._pixels_of_image(record).float() for record in records])

    def _pixels_of_record(self, record: bytes, number: int, kind: str) -> torch.Tensor:
        """Of one line or binary record, float32 [1, C, H, W]."""
        what = "record" if kind in codec.RECORD_TYPES else "line"
        value = lines.value_of(record, number, kind)
        try:
            files = kind in codec.RECORD_TYPES and isinstance(value, list)
            pixels = self._pixels_of_records(value) if files else self._pixels_of_array(codec.to_array(_record(value)))
        except BadRequest as error:
            raise BadRequest(f"{what} {number}: {error}") from None
        if len(pixels) != 1:
            raise BadRequest(f"{what} {number} holds {len(pixels)} images; one is allowed")
        return pixels

    def _pixels_of_image(self, body: bytes) -> torch.Tensor:
        try:
            image = decode_image(body, self.signature.channels)
        except ImageTooLarge as error:
            raise BodyTooLarge(str(error)) from None
        except ImageError as error:
            raise BadRequest(f"the image cannot be decoded: {str(error)[:200]}") from None
        return resize_image(image, self.signature.height, self.signature.width)

    def _values(self, body: bytes, call: Call, kind: str) -> Any:
        if kind == codec.NPY:
            return codec.decode_npy(body)
        if kind == codec.CSV:
            return codec.decode_csv(body)
        if kind == codec.JSON_LINES:
            return codec.to_array([_record(value) for value in codec.decode_json_lines(body)])
        value = codec.decode_json(body)
        if isinstance(value, dict):
            if "instances" not in value:
                raise BadRequest('a JSON object needs the key "instances": {"instances": [image, …]}')
            return codec.to_array([_record(record) for record in _list(value["instances"])])
        call.bare = True
        return codec.to_array(value)

    def _pixels_of_array(self, values: Any) -> torch.Tensor:
        """Pixel values 0..255 as float32 [B, C, H, W]."""
        shape = self.signature.image_shape
        if not isinstance(values, np.ndarray):
            raise BadRequest(self._expected("something that is no array of numbers"))
        pixels = values.astype(np.float32)  # a copy: a body's own memory is read-only
        for record in (shape, (int(np.prod(shape)),), *([shape[1:]] if shape[0] == 1 else [])):
            if pixels.shape == record or (pixels.ndim == len(record) + 1 and pixels.shape[1:] == record):
                break
        else:
            raise BadRequest(self._expected(f"shape {list(pixels.shape)}"))
        if not pixels.size:
            raise BadRequest(self._expected("no image at all"))
        if not (pixels.min() >= 0 and pixels.max() <= 255):  # false for NaN as well
            raise BadRequest("pixel values must be numbers from 0 to 255")
        return torch.from_numpy(pixels.reshape(-1, *shape))

    def _expected(self, got: str) -> str:
        channels, height, width = self.signature.image_shape
        return (
            f"expected pixel values of shape [{channels}, {height}, {width}] for one image or "
            f"[N, {channels}, {height}, {width}] for several ({channels * height * width} values a CSV line), got {got}"
        )

    def batch_key(self, data: Any) -> Hashable:
        return tuple(data.shape[1:])

    def predict(self, batch: Sequence[Any]) -> list[np.ndarray]:
        """Class probabilities, float32 [B, num_classes], for each of several inputs float32 [B, C, H, W]."""
        inputs = [torch.as_tensor(data) for data in batch]
        with torch.inference_mode():
            images = self._batch(inputs)
            parts = images.split(rows_at_once(images[0].nbytes))
            shown = [torch.softmax(self.network(part), dim=1).cpu() for part in parts]
            probabilities = (shown[0] if len(shown) == 1 else torch.cat(shown)).numpy()
        ends = np.cumsum([len(data) for data in inputs])
        return np.split(probabilities, ends[:-1])

    def _batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Inputs as one tensor on the device; to a GPU through page-locked memory, so that no thread copies it."""
        if self.device == "cpu":
            return inputs[0] if len(inputs) == 1 else torch.cat(inputs)
        rows = sum(map(len, inputs))
        staging = torch.empty((rows, *inputs[0].shape[1:]), dtype=inputs[0].dtype, pin_memory=torch.cuda.is_available())
        return torch.cat(inputs, out=staging).to(self.device, non_blocking=True)

    def encode(self, prediction: Any, call: Call) -> tuple[bytes, str]:
        """Probabilities as the caller asked for them: objects with label and score, CSV lines, or the array."""
        kind = codec.negotiate(call.request.headers.get("accept"), codec.ANSWER_TYPES, self.default_accept)
        if prediction is lines.NO_RECORDS:
            prediction = np.empty((0, len(self.signature.classes)), np.float32)
        if not isinstance(prediction, np.ndarray) or prediction.shape[1:] != (len(self.signature.classes),):
            return codec.encode_prediction(prediction, kind), kind
        if call.bad:
            return self._encode_with_placeholders(prediction, call, kind), kind
        if kind == codec.NPY:
            return codec.encode_npy(prediction), kind
        return self._encode_records([self._record(row) for row in prediction], call, kind), kind

    def _encode_with_placeholders(self, probabilities: np.ndarray, call: Call, kind: str) -> bytes:
        nothing = np.full(len(self.signature.classes), np.nan, np.float32)
        if kind == codec.NPY:
            return codec.encode_npy(np.array(lines.merge(list(probabilities), dict.fromkeys(call.bad, nothing))))
        empty = {"label": "", "score": np.nan, "probabilities": nothing}
        errors = {index: {**empty, "index": index, "error": message} for index, message in call.bad.items()}
        return self._encode_records(lines.merge([self._record(row) for row in probabilities], errors), call, kind)

    def _encode_records(self, records: list[dict[str, Any]], call: Call, kind: str) -> bytes:
        if kind == codec.CSV:
            return "\n".join(_csv_line(record) for record in records).encode()
        if kind in (codec.JSON_LINES, codec.RECORDIO):
            return codec.encode_prediction(records, kind)
        return codec.encode_json(records if call.bare else {"predictions": records})

    def _record(self, row: np.ndarray) -> dict[str, Any]:
        best = int(row.argmax())
        return {"label": self.signature.classes[best], "score": row[best], "probabilities": row}

    def interface(self) -> Interface:
        return Interface(self.signature.image_shape, self.signature.classes)

    def warm_up(self) -> tuple[bytes, str]:
        """A request this model must be able to answer: one black image."""
        return codec.encode_npy(np.zeros(self.signature.image_shape, np.float32)), codec.NPY

    def tune(self, keep_loaded: bool, within: float) -> str:
        """Serve the network in another form where that gives the same answers in less time; "": no time for that.

        Args:
            keep_loaded: whether somebody uses the network as it was loaded, too.
            within: about how many seconds it may take.
        """
        assert self.model is not None
        shape = self.signature.image_shape
        examples = [torch.rand(count, *shape, device=self.device) for count in (1, 2)]
        self.network, line = fastest_form(self.model, examples, within)
        if line and not keep_loaded:
            self.model = None
        return line

    def examples(self, count: int) -> list[Any]:
        """Inputs float32 [1, C, H, W], none like another."""
        generator = torch.Generator().manual_seed(0)
        return [torch.rand(1, *self.signature.image_shape, generator=generator) for _ in range(count)]

    def predict_alone(self) -> None:
        """Show the network one image at a time from now on, those of one request as well."""
        network = self.network
        self.network = lambda images: torch.cat([network(image[None]) for image in images])


def _record(value: Any) -> Any:
    """A record is a bare list, or an object that wraps it as SageMaker's own algorithms do."""
    while isinstance(value, dict):  # no recursion: a body may nest a thousand of them
        name = next((name for name in ("instance", "features", "data") if name in value), None)
        if name is None:
            raise BadRequest('a record that is an object needs the key "instance" or "features"')
        value = value[name]
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise BadRequest('"instances" must be a list of images')
    return value


def _csv_line(record: dict[str, Any]) -> str:
    label = record["label"]
    quoted = '"' + label.replace('"', '""') + '"' if any(character in label for character in ',"\n\r') else label
    return ",".join([quoted, str(record["score"]), codec.csv_row(record["probabilities"])])
