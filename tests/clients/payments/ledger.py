"""The ledger as any Ethereum client sees it: JSON-RPC calls and raw transactions, signed here."""

import itertools
import json
import os
from pathlib import Path

import httpx
from eth_abi import decode, encode
from eth_account import Account
from eth_utils import keccak, to_checksum_address

NODE_URL = os.environ["NODE_URL"]
ARTIFACTS = Path(__file__).parents[3] / "contracts" / "artifacts"
TNZO = 10**18

_ids = itertools.count()


def rpc(method, *params):
    """The result of a JSON-RPC call that has to work."""
    call = {"jsonrpc": "2.0", "id": next(_ids), "method": method, "params": list(params)}
    answer = httpx.post(NODE_URL, json=call, timeout=30).json()
    assert "error" not in answer, (method, answer["error"])
    return answer["result"]


INFO = rpc("tenzro_networkInfo")
CHAIN_ID = INFO["chain_id"]
TOKEN = INFO["contracts"]["tnzo"]
ESCROW = INFO["contracts"]["payment_channels"]
FAUCET = INFO["contracts"]["faucet"]


def _type(item):
    if not item["type"].startswith("tuple"):
        return item["type"]
    return "(" + ",".join(map(_type, item["components"])) + ")" + item["type"][len("tuple") :]


def _functions(name):
    abi = json.loads((ARTIFACTS / f"{name}.json").read_text())["abi"]
    return {
        item["name"]: (list(map(_type, item["inputs"])), list(map(_type, item["outputs"])))
        for item in abi
        if item["type"] == "function"
    }


ABI = _functions("TNZO") | _functions("PaymentChannels") | _functions("Faucet")


def call_data(function, *arguments):
    types = ABI[function][0]
    return keccak(text=f"{function}({','.join(types)})")[:4] + encode(types, arguments)


def read(contract, function, *arguments):
    """The value of a view function."""
    call = {"to": contract, "data": "0x" + call_data(function, *arguments).hex()}
    values = decode(ABI[function][1], bytes.fromhex(rpc("eth_call", call, "latest")[2:]))
    return values[0] if len(values) == 1 else values


def send(account, contract, function, *arguments):
    """Hash of a transaction that was mined and worked."""
    transaction = {
        "chainId": CHAIN_ID,
        "nonce": int(rpc("eth_getTransactionCount", account.address, "pending"), 16),
        "to": to_checksum_address(contract),
        "data": call_data(function, *arguments),
        "value": 0,
        "gas": 500_000,
        "maxFeePerGas": 0,
        "maxPriorityFeePerGas": 0,
    }
    raw = account.sign_transaction(transaction).raw_transaction
    sent = rpc("eth_sendRawTransaction", "0x" + bytes(raw).hex())
    assert rpc("eth_getTransactionReceipt", sent)["status"] == "0x1", function
    return sent


def balance(address):
    return read(TOKEN, "balanceOf", address)


def channel(channel_id):
    """deposit, settled, finalized"""
    found = read(ESCROW, "getChannel", bytes.fromhex(channel_id[2:]))
    return found[4], found[5], found[7]


def new_wallet():
    """A key that nobody used before, with what the faucet gives."""
    account = Account.create()
    send(account, FAUCET, "drip", account.address)
    return account
