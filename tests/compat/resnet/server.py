"""Classifies images by ResNet-50 with random weights."""

import settings
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import resnet50

from virtex import HttpMessage, RequestHandler, http_server
from virtex.serial import decode_pil_from_bytes, encode_bytes, encode_pickle


class Classes(RequestHandler):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = resnet50().eval().to(device)
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )

    def process_request(self, data):
        images = [decode_pil_from_bytes(item).convert("RGB").resize((224, 224), Image.NEAREST) for item in data]
        return torch.stack([self.transform(image) for image in images], dim=0)

    def run_inference(self, model_input):
        return self.model(model_input.to(self.device))

    def process_response(self, model_output_item):
        return encode_pickle(model_output_item.cpu().detach().numpy())


arguments = settings.of_service(batch=48)

# As its users did: one item, and as many as a batch may have, before anything is served.
image = (settings.DATA / "tiny-imagenet-200/test/images/test_0.JPEG").read_bytes()
for count in 1, arguments["max_batch_size"]:
    message = HttpMessage(data=[image] * count)
    message.encode(encode_bytes)
    assert len(Classes().validate(message).data) == count

app = http_server(name="resnet_50_v2_service", handler=Classes(), **arguments)
