"""Embeds texts: what BERT, of the base size and with random weights, gives for the first token."""

import settings
import torch
from transformers.models.bert import BertConfig, BertModel, BertTokenizer

from virtex import RequestHandler, http_server
from virtex.serial import encode_pickle

LONGEST = int(settings.number("MAX_SEQUENCE_LENGTH", 12))  # tokens, the two at the ends among them


class Embeddings(RequestHandler):
    tokenizer = BertTokenizer.from_pretrained("bert-base-uncased")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = BertModel(config=BertConfig()).eval().to(device)

    def process_request(self, data):
        tokens = [["[CLS]", *self.tokenizer.tokenize(text.strip().lower())[: LONGEST - 2], "[SEP]"] for text in data]
        longest = max(map(len, tokens))
        padded = [row + ["[MASK]"] * (longest - len(row)) for row in tokens]
        ids = torch.tensor([self.tokenizer.convert_tokens_to_ids(row) for row in padded])
        mask = torch.tensor([[int(at < len(row)) for at in range(longest)] for row in tokens])
        return ids, mask, torch.zeros_like(ids)

    def run_inference(self, model_input):
        ids, mask, segments = (part.to(self.device) for part in model_input)
        return self.model.forward(input_ids=ids, attention_mask=mask, token_type_ids=segments)[1]

    def process_response(self, model_output_item):
        return encode_pickle(model_output_item.cpu().detach().numpy())


app = http_server(name="bert_embedding_service", handler=Embeddings(), **settings.of_service(batch=128))
