"""Method `evm`, intent `session` for MPP's own client.

Nothing published signs this method's credentials from end to end, so this composes what is: `mpp_evm` (by the
draft's authors) signs vouchers, `eth_account` signs the EIP-3009 authorization, `mpp` reads challenges and
receipts, writes credentials and pays on a 402. Only ids, nonces and field names are from here, after
draft-evm-session-00.
"""

import base64
import json
import os
import time
from dataclasses import dataclass, field

import httpx
from eth_abi import encode
from eth_account import Account
from eth_utils import keccak, to_checksum_address
from mpp import Challenge, Credential, Receipt
from mpp_evm.session.voucher import sign_voucher
from mpp_evm.signer import PrivateKeySigner

ZERO = "0x" + "00" * 20
PROVIDER_URL = os.environ["PROVIDER_URL"]
CHAT = f"{PROVIDER_URL}/chat/completions"
MODEL = os.environ["TEST_MODEL"]


def ask(**options):
    """A chat request; its answers have `max_tokens` tokens, since the model may not stop before."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Write about the sea."}],
        "temperature": 0,
        "max_tokens": 20,
        "ignore_eos": True,
    }
    return body | options


def challenge():
    """What the provider asks for now."""
    refused = httpx.post(CHAT, json=ask(), timeout=30)
    assert refused.status_code == 402
    return Challenge.from_www_authenticate(refused.headers["www-authenticate"])


def _hex(data):
    return "0x" + data.hex()


def _bytes(text):
    return bytes.fromhex(text[2:])


def _keccak(types, *values):
    return keccak(encode(types, values))


@dataclass
class Channel:
    """A payer's side of one channel."""

    payer: Account
    request: dict
    salt: bytes = field(default_factory=lambda: os.urandom(32))

    @property
    def details(self):
        return self.request["methodDetails"]

    @property
    def id(self):
        return _hex(
            _keccak(
                ["address", "address", "address", "bytes32", "address", "address", "uint256"],
                *self._parties(),
                self.details["escrowContract"],
                self.details["chainId"],
            )
        )

    @property
    def source(self):
        return f"did:pkh:eip155:{self.details['chainId']}:{self.payer.address}"

    def _parties(self):
        return self.payer.address, self.request["recipient"], self.request["currency"], self.salt, ZERO

    def voucher(self, amount, signer=None):
        """The signature of a voucher, by `mpp_evm`."""
        signature = sign_voucher(
            signer=PrivateKeySigner(signer or self.payer),
            channel_id=_bytes(self.id),
            cumulative_amount=amount,
            escrow_contract=self.details["escrowContract"],
            chain_id=self.details["chainId"],
        )
        return _hex(signature)

    def _authorization(self, amount, nonce):
        """EIP-3009, signed as typed data by `eth_account`."""
        message = {
            "from": self.payer.address,
            "to": to_checksum_address(self.details["escrowContract"]),
            "value": amount,
            "validAfter": 0,
            "validBefore": int(time.time()) + 600,
            "nonce": nonce,
        }
        kinds = ["address", "address", "uint256", "uint256", "uint256", "bytes32"]
        types = {
            "ReceiveWithAuthorization": [
                {"name": name, "type": kind} for name, kind in zip(message, kinds, strict=True)
            ]
        }
        domain = {
            "name": "Tenzro",
            "version": "1",
            "chainId": self.details["chainId"],
            "verifyingContract": to_checksum_address(self.request["currency"]),
        }
        signed = self.payer.sign_typed_data(domain, types, message)
        numbers = {name: str(message[name]) for name in ("value", "validAfter", "validBefore")}
        authorization = message | numbers | {"nonce": _hex(nonce)}
        return {"authorization": authorization, "signature": _hex(bytes(signed.signature))}

    def open(self, deposit, amount):
        """The payload that opens by authorization."""
        nonce = _keccak(["address", "address", "address", "bytes32", "address"], *self._parties())
        return {
            "action": "open",
            "type": "authorization",
            "channelId": self.id,
            "cumulativeAmount": str(amount),
            "voucherSignature": self.voucher(amount),
            "salt": _hex(self.salt),
            **self._authorization(deposit, nonce),
        }

    def opened_by(self, transaction, amount):
        """The payload for a channel that the payer opened itself."""
        return {
            "action": "open",
            "type": "hash",
            "channelId": self.id,
            "hash": transaction,
            "cumulativeAmount": str(amount),
            "signature": self.voucher(amount),
            "salt": _hex(self.salt),
        }

    def top_up(self, amount):
        salt = os.urandom(32)
        types = ["bytes32", "uint128", "address", "bytes32"]
        nonce = _keccak(types, _bytes(self.id), amount, self.payer.address, salt)
        return {
            "action": "topUp",
            "type": "authorization",
            "channelId": self.id,
            "salt": _hex(salt),
            "additionalDeposit": str(amount),
            **self._authorization(amount, nonce),
        }

    def update(self, amount, action="voucher", signer=None):
        """The payload with a voucher: `action` is `voucher` or `close`."""
        return {
            "action": action,
            "channelId": self.id,
            "cumulativeAmount": str(amount),
            "signature": self.voucher(amount, signer),
        }


class PayerMethod:
    """A payment method of MPP's client: opens a channel, then pays what it takes to be served."""

    name = "evm"
    intents = ("session",)

    def __init__(self, payer, deposit):
        self.payer, self.deposit = payer, deposit
        self.channel = None

    async def create_credential(self, challenge):
        self.channel = Channel(self.payer, challenge.request)
        return Credential(challenge.to_echo(), self.channel.open(self.deposit, 0))

    def raise_voucher(self, event):
        """For the client's event of a challenge: the answer to one that says how much is missing."""
        required = event["response"].json().get("requiredCumulative")
        if self.channel and required:
            return Credential(event["challenge"].to_echo(), self.channel.update(int(required)))


def headers_of(payload, to, source=None):
    """The header of a payment that answers a challenge."""
    return {"authorization": Credential(to.to_echo(), payload, source).to_authorization()}


def pay(payload, to=None, source=None, body=None, verb=None):
    """The answer to a request that brings a payment; without a body, only that is taken in."""
    verb = verb or ("HEAD" if body is None else "POST")
    headers = headers_of(payload, to or challenge(), source)
    return httpx.request(verb, CHAT, json=body, headers=headers, timeout=120)


def receipt(response):
    """The receipt of an answer as MPP's client reads it, and all of it: the client keeps what is in the core."""
    assert response.status_code == 200, response.text
    header = response.headers["payment-receipt"]
    padded = header + "=" * (-len(header) % 4)
    return Receipt.from_payment_receipt(header), json.loads(base64.urlsafe_b64decode(padded))


def receipt_of_event(data):
    """The same of the last event of a stream."""
    return Receipt.from_payment_receipt(base64.urlsafe_b64encode(data.encode()).decode()), json.loads(data)


def problem(response):
    """Status and type of a refusal whose form is that of RFC 9457."""
    assert response.headers["content-type"] == "application/problem+json"
    assert "payment-receipt" not in response.headers
    body = json.loads(response.text)
    assert body["status"] == response.status_code and body["detail"] and body["title"]
    return response.status_code, body["type"].removeprefix("https://paymentauth.org/problems/"), body
