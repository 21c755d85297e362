// viem against the node's `/`, as against any Ethereum node.
import assert from "node:assert/strict";
import { before, describe, test } from "node:test";
import {
  BaseError,
  ContractFunctionRevertedError,
  createPublicClient,
  createWalletClient,
  decodeEventLog,
  encodeFunctionData,
  getAddress,
  http,
  nonceManager,
  parseEventLogs,
  toHex,
  zeroAddress,
} from "viem";
import { generatePrivateKey, privateKeyToAccount } from "viem/accounts";

import {
  DRIP,
  STAKE,
  TNZO,
  balanceOf,
  chain,
  contracts,
  eventually,
  mined,
  newWallet,
  node,
  permit,
  publicClient,
  registry,
  sleep,
  split,
  tokenDomain,
  unique,
} from "./support.mjs";

const { tnzo, faucet, registry: registryContract } = contracts;

const transfer = (wallet, to, amount, extra = {}) =>
  wallet.writeContract({ ...tnzo, functionName: "transfer", args: [to, amount], ...extra });

/** The contract's own error of a promise that fails. */
async function revertOf(promise) {
  const error = await promise.then(
    () => assert.fail("it worked"),
    (error) => error,
  );
  assert.ok(error instanceof BaseError, String(error));
  const reverted = error.walk((cause) => cause instanceof ContractFunctionRevertedError);
  assert.ok(reverted, error.message);
  return reverted.data;
}

describe("chain", () => {
  test("chain id, version, blocks, code", async () => {
    assert.equal(await publicClient.getChainId(), 1337);
    assert.equal(await publicClient.request({ method: "net_version" }), "1337");
    assert.match(await publicClient.request({ method: "web3_clientVersion" }), /tenzro/);
    const number = await publicClient.getBlockNumber();
    assert.ok(number >= 5n);
    for (const contract of Object.values(contracts)) {
      const code = await publicClient.getCode({ address: contract.address });
      assert.ok(code.length > 1000);
    }
    assert.equal(await publicClient.getCode({ address: zeroAddress }), undefined);
    const supply = await publicClient.readContract({ ...tnzo, functionName: "totalSupply" });
    assert.equal(supply, 1_000_000_000n * TNZO);
    const [name, symbol, decimals] = await Promise.all(
      ["name", "symbol", "decimals"].map((functionName) =>
        publicClient.readContract({ ...tnzo, functionName }),
      ),
    );
    assert.deepEqual([name, symbol, decimals], ["Tenzro", "TNZO", 18]);
  });

  test("blocks by number, tag and hash, with transactions; their parents", async () => {
    const wallet = await newWallet();
    const receipt = await mined(await transfer(wallet, zeroAddress.replace(/0$/, "9"), 5n));
    const block = await publicClient.getBlock({
      blockNumber: receipt.blockNumber,
      includeTransactions: true,
    });
    assert.equal(block.hash, receipt.blockHash);
    assert.equal(block.baseFeePerGas, 0n);
    assert.equal(block.transactions.length, 1);
    const [transaction] = block.transactions;
    assert.equal(transaction.hash, receipt.transactionHash);
    assert.equal(getAddress(transaction.from), wallet.address);
    assert.equal(getAddress(transaction.to), getAddress(tnzo.address));
    assert.equal(block.gasUsed, receipt.gasUsed);
    const parent = await publicClient.getBlock({ blockHash: block.parentHash });
    assert.equal(parent.number, block.number - 1n);
    assert.deepEqual(parent.transactions.length, 1);
    assert.match(parent.transactions[0], /^0x[0-9a-f]{64}$/);
    for (const blockTag of ["latest", "safe", "finalized", "pending"]) {
      assert.ok((await publicClient.getBlock({ blockTag })).number >= block.number, blockTag);
    }
    assert.equal((await publicClient.getBlock({ blockTag: "earliest" })).number, 0n);
    await assert.rejects(publicClient.getBlock({ blockNumber: 10n ** 9n }), { name: "BlockNotFoundError" });
    const count = await publicClient.getBlockTransactionCount({ blockNumber: receipt.blockNumber });
    assert.equal(count, 1);
    const drift = Math.abs(Number(block.timestamp) - Date.now() / 1000);
    assert.ok(drift < 5, `the block's clock is ${drift} s off`);
  });

  test("a transaction and its receipt, by hash and by place", async () => {
    const wallet = await newWallet();
    const to = (await newWallet({ funded: false })).address;
    const hash = await transfer(wallet, to, 7n * TNZO);
    const receipt = await mined(hash);
    const transaction = await publicClient.getTransaction({ hash });
    assert.equal(transaction.blockHash, receipt.blockHash);
    assert.equal(transaction.nonce, 1);
    assert.equal(transaction.type, "eip1559");
    assert.equal(transaction.chainId, 1337);
    assert.equal(transaction.value, 0n);
    assert.equal(
      transaction.input,
      encodeFunctionData({ ...tnzo, functionName: "transfer", args: [to, 7n * TNZO] }),
    );
    const placed = await publicClient.getTransaction({ blockNumber: receipt.blockNumber, index: 0 });
    assert.equal(placed.hash, hash);
    assert.equal(getAddress(receipt.from), wallet.address);
    assert.equal(receipt.transactionIndex, 0);
    assert.equal(receipt.effectiveGasPrice, 0n);
    assert.equal(receipt.logs.length, 1);
    assert.equal(receipt.contractAddress ?? null, null);
    const event = decodeEventLog({ ...tnzo, ...receipt.logs[0] });
    assert.equal(event.eventName, "Transfer");
    assert.deepEqual(event.args, { from: wallet.address, to, value: 7n * TNZO });
    assert.equal(await publicClient.getTransactionConfirmations({ hash }) >= 1n, true);
    const unknown = `0x${"12".repeat(32)}`;
    await assert.rejects(publicClient.getTransaction({ hash: unknown }), {
      name: "TransactionNotFoundError",
    });
    await assert.rejects(publicClient.getTransactionReceipt({ hash: unknown }), {
      name: "TransactionReceiptNotFoundError",
    });
  });

  test("fees are nothing, and offering some costs nothing", async () => {
    assert.equal(await publicClient.getGasPrice(), 0n);
    assert.equal(await publicClient.estimateMaxPriorityFeePerGas(), 0n);
    const fees = await publicClient.estimateFeesPerGas();
    assert.equal(fees.maxFeePerGas, 0n);
    const history = await publicClient.getFeeHistory({ blockCount: 4, rewardPercentiles: [25, 75] });
    assert.equal(history.baseFeePerGas.length, 5);
    const wallet = await newWallet();
    const offer = { maxFeePerGas: 5n * 10n ** 9n, maxPriorityFeePerGas: 10n ** 9n };
    const receipt = await mined(await transfer(wallet, tnzo.address, 1n, offer));
    assert.equal(await publicClient.getBalance({ address: wallet.address }), 0n);
    assert.equal(receipt.effectiveGasPrice, 0n);
    await mined(await transfer(wallet, tnzo.address, 1n, { gasPrice: 7n, type: "legacy" }));
    await mined(
      await transfer(wallet, tnzo.address, 1n, { gasPrice: 0n, type: "eip2930", accessList: [] }),
    );
  });

  test("storage and historic state", async () => {
    const wallet = await newWallet();
    const { blockNumber } = await mined(await transfer(wallet, faucet.address, 3n * TNZO));
    const before = { blockNumber: blockNumber - 1n };
    assert.equal(await balanceOf(wallet.address, before), DRIP);
    assert.equal(await balanceOf(wallet.address, { blockNumber }), DRIP - 3n * TNZO);
    const nonce = (extra) => publicClient.getTransactionCount({ address: wallet.address, ...extra });
    assert.equal(await nonce(before), 1);
    assert.equal(await nonce({}), 2);
    assert.equal(await nonce({ blockTag: "pending" }), 2);
    assert.equal(await publicClient.getCode({ address: tnzo.address, blockNumber: 0n }), undefined);
    const slot = await publicClient.getStorageAt({ address: tnzo.address, slot: "0x0" });
    assert.match(slot, /^0x[0-9a-f]{64}$/);
    await assert.rejects(balanceOf(wallet.address, { blockNumber: 10n ** 9n }), /header not found/);
  });
});

describe("TNZO", () => {
  test("the faucet gives once a day; its error is decoded", async () => {
    const wallet = await newWallet();
    assert.equal(await balanceOf(wallet.address), DRIP);
    assert.equal(await publicClient.getBalance({ address: wallet.address }), 0n);
    const again = { ...faucet, functionName: "drip", args: [wallet.address], account: wallet.account };
    const error = await revertOf(publicClient.simulateContract(again));
    assert.equal(error.errorName, "TooSoon");
    const nextAt = await publicClient.readContract({
      ...faucet,
      functionName: "nextDripAt",
      args: [wallet.address],
    });
    assert.deepEqual(error.args, [nextAt]);
    assert.equal((await revertOf(wallet.writeContract(again))).errorName, "TooSoon");
  });

  test("send, with an estimate that is enough and not far too much", async () => {
    const wallet = await newWallet();
    const to = (await newWallet({ funded: false })).address;
    const request = { ...tnzo, functionName: "transfer", args: [to, TNZO], account: wallet.account };
    const gas = await publicClient.estimateContractGas(request);
    const simulated = await publicClient.simulateContract(request);
    assert.equal(simulated.result, true);
    const receipt = await mined(await wallet.writeContract({ ...simulated.request, gas }));
    assert.ok(gas >= receipt.gasUsed && gas < receipt.gasUsed * 2n, `${gas}, ${receipt.gasUsed}`);
    assert.equal(await balanceOf(to), TNZO);
    assert.equal(await balanceOf(wallet.address), DRIP - TNZO);
  });

  test("more than there is: decoded, and nothing moved", async () => {
    const wallet = await newWallet();
    const to = (await newWallet({ funded: false })).address;
    const request = { ...tnzo, functionName: "transfer", args: [to, DRIP + 1n], account: wallet.account };
    const error = await revertOf(publicClient.simulateContract(request));
    assert.equal(error.errorName, "ERC20InsufficientBalance");
    assert.deepEqual(error.args, [wallet.address, DRIP, DRIP + 1n]);
    assert.equal((await revertOf(publicClient.estimateContractGas(request))).errorName, error.errorName);
    // Sent all the same, it is mined and fails.
    const hash = await transfer(wallet, to, DRIP + 1n, { gas: 100_000n });
    const receipt = await publicClient.waitForTransactionReceipt({ hash });
    assert.equal(receipt.status, "reverted");
    assert.equal(receipt.logs.length, 0);
    assert.equal(await balanceOf(to), 0n);
    assert.equal(await balanceOf(wallet.address), DRIP);
  });

  test("what cannot be sent is refused in words that viem knows", async () => {
    const wallet = await newWallet();
    const send = (extra) => transfer(wallet, wallet.address, 1n, { gas: 100_000n, ...extra });
    const coin = () => wallet.sendTransaction({ to: wallet.address, value: 1n, gas: 100_000n });
    const refusals = {
      NonceTooLowError: () => send({ nonce: 0 }),
      IntrinsicGasTooLowError: () => send({ gas: 21_000n }),
      InsufficientFundsError: coin,
    };
    for (const [name, refusal] of Object.entries(refusals)) {
      const error = await refusal().then(
        () => assert.fail(`${name}: it worked`),
        (error) => error,
      );
      const names = [];
      error.walk((cause) => names.push(cause.name) < 0);
      assert.ok(names.includes(name), `${names}: ${error.message}`);
    }
    await assert.rejects(send({ chain: { ...chain, id: 1 } }), /invalid chain id/);
    assert.equal(await publicClient.getTransactionCount({ address: wallet.address }), 1);
  });

  test("many sends at once get their nonces from viem's manager", async () => {
    const key = generatePrivateKey();
    const account = privateKeyToAccount(key, { nonceManager });
    const wallet = await newWallet({ account });
    const to = (await newWallet({ funded: false })).address;
    const hashes = await Promise.all(Array.from({ length: 20 }, () => transfer(wallet, to, TNZO)));
    const receipts = await Promise.all(hashes.map((hash) => mined(hash)));
    assert.equal(new Set(receipts.map((receipt) => receipt.blockNumber)).size, 20);
    assert.equal(await balanceOf(to), 20n * TNZO);
    assert.equal(await publicClient.getTransactionCount({ address: wallet.address }), 21);
  });

  test("the same transaction twice is known already, and counts once", async () => {
    const wallet = await newWallet();
    const to = (await newWallet({ funded: false })).address;
    const data = encodeFunctionData({ ...tnzo, functionName: "transfer", args: [to, TNZO] });
    const request = await wallet.prepareTransactionRequest({ to: tnzo.address, data });
    const serializedTransaction = await wallet.signTransaction(request);
    const hash = await publicClient.sendRawTransaction({ serializedTransaction });
    await mined(hash);
    await assert.rejects(publicClient.sendRawTransaction({ serializedTransaction }), /already known/);
    assert.equal(await balanceOf(to), TNZO);
    const sync = await wallet.signTransaction({ ...request, nonce: request.nonce + 1 });
    assert.equal(typeof sync, "string");
  });

  test("ERC-2612: an allowance by signature, sent by somebody else", async () => {
    const owner = await newWallet();
    const spender = await newWallet();
    const { deadline, v, r, s } = await permit(owner, spender.address, 9n * TNZO);
    const args = [owner.address, spender.address, 9n * TNZO, deadline, v, r, s];
    await mined(await spender.writeContract({ ...tnzo, functionName: "permit", args }));
    const pull = { ...tnzo, functionName: "transferFrom", args: [owner.address, spender.address, 9n * TNZO] };
    await mined(await spender.writeContract(pull));
    assert.equal(await balanceOf(spender.address), DRIP + 9n * TNZO);
    assert.equal(await publicClient.getTransactionCount({ address: owner.address }), 1);
    const replay = { ...tnzo, functionName: "permit", args, account: spender.account };
    assert.equal((await revertOf(publicClient.simulateContract(replay))).errorName, "ERC2612InvalidSigner");
    const late = await permit(owner, spender.address, 1n, 1n);
    const expired = [owner.address, spender.address, 1n, 1n, late.v, late.r, late.s];
    const error = await revertOf(publicClient.simulateContract({ ...replay, args: expired }));
    assert.equal(error.errorName, "ERC2612ExpiredSignature");
  });

  test("ERC-3009: a transfer by signature, in both forms", async () => {
    const from = await newWallet();
    const relayer = await newWallet({ funded: false });
    const to = (await newWallet({ funded: false })).address;
    const signed = async (nonce) => {
      const message = { from: from.address, to, value: TNZO, validAfter: 0n, validBefore: 2n ** 40n, nonce };
      const fields = ["address from", "address to", "uint256 value", "uint256 validAfter"];
      fields.push("uint256 validBefore", "bytes32 nonce");
      const types = fields.map((field) => field.split(" ")).map(([type, name]) => ({ type, name }));
      const signature = await from.signTypedData({
        domain: await tokenDomain(),
        types: { TransferWithAuthorization: types },
        primaryType: "TransferWithAuthorization",
        message,
      });
      return { args: Object.values(message), signature };
    };
    const packed = await signed(`0x${"01".repeat(32)}`);
    const request = (args) => ({ ...tnzo, functionName: "transferWithAuthorization", args });
    await mined(await relayer.writeContract(request([...packed.args, packed.signature])));
    const second = await signed(`0x${"02".repeat(32)}`);
    const { v, r, s } = split(second.signature);
    await mined(await relayer.writeContract(request([...second.args, v, r, s])));
    assert.equal(await balanceOf(to), 2n * TNZO);
    const again = { ...request([...packed.args, packed.signature]), account: relayer.account };
    const error = await revertOf(publicClient.simulateContract(again));
    assert.equal(error.errorName, "ERC3009UsedAuthorization");
    const wrong = { ...request([...second.args.slice(0, 2), 5n * TNZO, ...second.args.slice(3)]) };
    wrong.args = [...wrong.args.slice(0, 5), `0x${"03".repeat(32)}`, second.signature];
    const forged = await revertOf(publicClient.simulateContract({ ...wrong, account: relayer.account }));
    assert.equal(forged.errorName, "ERC3009InvalidSignature");
    const used = { ...tnzo, functionName: "authorizationState" };
    const state = (nonce) => publicClient.readContract({ ...used, args: [from.address, nonce] });
    assert.equal(await state(`0x${"01".repeat(32)}`), true);
    assert.equal(await state(`0x${"03".repeat(32)}`), false);
  });
});

describe("logs", () => {
  let wallet;
  let to;
  let first;
  let last;
  before(async () => {
    wallet = await newWallet();
    to = (await newWallet({ funded: false })).address;
    for (const amount of [1n, 2n, 3n]) {
      const { blockNumber } = await mined(await transfer(wallet, to, amount));
      first ??= blockNumber;
      last = blockNumber;
    }
  });

  test("by contract event, range, argument and block hash", async () => {
    const range = { fromBlock: first, toBlock: last };
    const all = await publicClient.getContractEvents({
      ...tnzo,
      eventName: "Transfer",
      args: { from: wallet.address },
      ...range,
    });
    assert.deepEqual(all.map((log) => log.args.value), [1n, 2n, 3n]);
    assert.deepEqual(all.map((log) => log.logIndex), [0, 0, 0]);
    const toOne = await publicClient.getContractEvents({ ...tnzo, eventName: "Transfer", args: { to } });
    assert.ok(toOne.length <= 1, "without a range, the last block only");
    const { blockHash } = all[1];
    const inBlock = await publicClient.getLogs({ address: tnzo.address, blockHash });
    assert.equal(inBlock.length, 1);
    assert.equal(inBlock[0].transactionHash, all[1].transactionHash);
    assert.equal(inBlock[0].removed, false);
    const either = await publicClient.getContractEvents({
      ...tnzo,
      eventName: "Transfer",
      args: { to: [to, faucet.address] },
      ...range,
    });
    assert.equal(either.length, 3);
    const none = await publicClient.getLogs({ address: registryContract.address, ...range });
    assert.deepEqual(none, []);
    const several = await publicClient.getLogs({ address: [tnzo.address, faucet.address], ...range });
    assert.equal(several.length, 3);
    const mints = await publicClient.getContractEvents({
      ...tnzo,
      eventName: "Transfer",
      args: { from: zeroAddress },
      fromBlock: 0n,
    });
    assert.deepEqual(mints.map((log) => log.args.value), [1_000_000_000n * TNZO]);
  });

  test("all transfers since the beginning add up to the supply", async () => {
    const logs = await publicClient.getContractEvents({ ...tnzo, eventName: "Transfer", fromBlock: 0n });
    const balances = new Map();
    const add = (address, amount) => balances.set(address, (balances.get(address) ?? 0n) + amount);
    for (const { args } of logs) {
      add(args.from, -args.value);
      add(args.to, args.value);
    }
    balances.delete(zeroAddress);
    let sum = 0n;
    for (const balance of balances.values()) sum += balance;
    assert.equal(sum, 1_000_000_000n * TNZO);
    assert.equal(balances.get(to), 6n);
  });

  test("filters: events, blocks, uninstalling", async () => {
    const filter = await publicClient.createContractEventFilter({
      ...tnzo,
      eventName: "Transfer",
      args: { from: wallet.address },
      fromBlock: first,
    });
    const blocks = await publicClient.createBlockFilter();
    const hash = await transfer(wallet, to, 4n);
    const { blockHash } = await mined(hash);
    const changes = await publicClient.getFilterChanges({ filter });
    assert.deepEqual(changes.map((log) => log.args.value), [4n]);
    assert.deepEqual(await publicClient.getFilterChanges({ filter }), []);
    const logs = await publicClient.getFilterLogs({ filter });
    assert.deepEqual(logs.map((log) => log.args.value), [1n, 2n, 3n, 4n]);
    assert.ok((await publicClient.getFilterChanges({ filter: blocks })).includes(blockHash));
    assert.equal(await publicClient.uninstallFilter({ filter }), true);
    assert.equal(await publicClient.uninstallFilter({ filter }), false);
    await assert.rejects(publicClient.getFilterChanges({ filter }), /filter not found/);
    await publicClient.uninstallFilter({ filter: blocks });
  });

  test("watching: contract events, events, blocks, block numbers", async () => {
    const seen = { contract: [], event: [], blocks: [], numbers: [] };
    const onError = (error) => assert.fail(error);
    const stop = [
      publicClient.watchContractEvent({
        ...tnzo,
        eventName: "Transfer",
        args: { from: wallet.address },
        onLogs: (logs) => seen.contract.push(...logs.map((log) => log.args.value)),
        onError,
      }),
      publicClient.watchEvent({
        address: tnzo.address,
        onLogs: (logs) => seen.event.push(...logs.map((log) => log.transactionHash)),
        onError,
      }),
      publicClient.watchBlocks({ onBlock: (block) => seen.blocks.push(block.hash), onError }),
      publicClient.watchBlockNumber({ onBlockNumber: (n) => seen.numbers.push(n), onError }),
    ];
    try {
      await sleep(200);
      const hashes = [await transfer(wallet, to, 50n), await transfer(wallet, to, 51n)];
      const receipts = await Promise.all(hashes.map((hash) => mined(hash)));
      await eventually(
        () =>
          seen.contract.length >= 2 &&
          hashes.every((hash) => seen.event.includes(hash)) &&
          seen.blocks.includes(receipts[1].blockHash) &&
          seen.numbers.includes(receipts[1].blockNumber),
        "seen everything",
      );
      await sleep(200);
      assert.deepEqual(seen.contract, [50n, 51n], "each once");
    } finally {
      for (const one of stop) one();
    }
  });
});

describe("registry", () => {
  test("register, stake by permit, price and serve in one multicall; views and events", async () => {
    const wallet = await newWallet();
    const model = unique("viem-model");
    const url = "http://127.0.0.1:9/v1";
    const fromBlock = await publicClient.getBlockNumber();
    const write = (functionName, args) => wallet.writeContract({ ...registryContract, functionName, args });
    await mined(await write("register", [1, "viem & söhne"]));
    const { deadline, v, r, s } = await permit(wallet, registryContract.address, STAKE);
    await mined(await write("stakeWithPermit", [STAKE, deadline, v, r, s]));
    const encode = (functionName, args) => encodeFunctionData({ ...registryContract, functionName, args });
    const hash = toHex(7n, { size: 32 });
    const both = [
      encode("setPricing", [model, 3n, 4n]),
      encode("serveModel", [model, hash, url, '{"quantization":"Q4_K_M","context_length":4096}']),
    ];
    const request = { ...registryContract, functionName: "multicall", args: [both] };
    const { result } = await publicClient.simulateContract({ ...request, account: wallet.account });
    const id = result[1];
    const receipt = await mined(await wallet.writeContract(request));
    const events = parseEventLogs({ ...registryContract, logs: receipt.logs });
    assert.deepEqual(events.map((event) => event.eventName), ["PricingSet", "ModelServed"]);
    assert.equal(events[1].args.endpointId, id);

    const provider = await registry("provider", [wallet.address]);
    assert.equal(provider.name, "viem & söhne");
    assert.equal(provider.staked, STAKE);
    const endpoint = await registry("endpoint", [id]);
    assert.equal(endpoint.active, true);
    assert.equal(endpoint.modelHash, hash);
    assert.equal(endpoint.baseUrl, url);
    assert.deepEqual([endpoint.pricing.inputPrice, endpoint.pricing.outputPrice], [3n, 4n]);
    assert.equal(await registry("isActive", [id]), true);
    const ofModel = await registry("endpointsByModel", [model, 0n, 10n]);
    assert.deepEqual(ofModel.map((one) => one.id), [id]);
    assert.deepEqual((await registry("endpointsOf", [wallet.address, 0n, 10n])).length, 1);
    const count = await registry("providerCount");
    const page = await registry("providers", [count - 1n, 10n]);
    assert.equal(page[0].provider, wallet.address);
    const history = await publicClient.getContractEvents({
      ...registryContract,
      args: { provider: wallet.address },
      fromBlock,
    });
    const mine = history.filter((log) => log.args.provider === wallet.address);
    assert.deepEqual(
      mine.map((log) => log.eventName),
      ["Registered", "Staked", "PricingSet", "ModelServed"],
    );
    // Before it was registered there was nothing.
    const early = await registry("provider", [wallet.address], { blockNumber: fromBlock });
    assert.equal(early.role, 0);

    const listed = await fetch(node.url, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ jsonrpc: "2.0", id: 1, method: "tenzro_listModelEndpoints", params: [model] }),
    });
    const [told] = (await listed.json()).result;
    assert.equal(told.endpoint_id, id);
    assert.equal(told.provider, wallet.address);
    assert.equal(told.provider_name, "viem & söhne");
    assert.equal(told.quantization, "Q4_K_M");
    assert.equal(told.context_length, 4096);
    assert.equal(told.price_per_output_token, "4");
  });

  test("what it refuses is decoded, with its arguments", async () => {
    const wallet = await newWallet();
    const refusal = async (functionName, args, account = wallet.account) =>
      revertOf(publicClient.simulateContract({ ...registryContract, functionName, args, account }));
    const none = `0x${"ab".repeat(32)}`;
    assert.deepEqual(await refusal("stopModel", [none]).then(named), ["EndpointNotFound", none]);
    assert.deepEqual(await refusal("register", [0, ""]).then(named), ["InvalidRole", 0]);
    assert.deepEqual(await refusal("deregister", []).then(named), ["NotRegistered", wallet.address]);
    assert.deepEqual(await refusal("requestUnstake", [1n]).then(named), ["InsufficientBonded", 1n, 0n]);
    assert.deepEqual(await refusal("setSchedule", ["UTC", 0, 1500, 127]).then(named), [
      "InvalidSchedule",
      0,
      1500,
      127,
    ]);
    const long = await refusal("register", [1, "x".repeat(65)]).then(named);
    assert.deepEqual(long, ["InvalidLength", "name", 65n, 0n, 64n]);
    assert.deepEqual(await refusal("slash", [wallet.address, 1n, ""]).then(named), [
      "NotArbiter",
      wallet.address,
    ]);
  });

  test("watched, in the order in which it happened", async () => {
    const wallet = await newWallet();
    const names = [];
    const stop = publicClient.watchContractEvent({
      ...registryContract,
      onLogs: (logs) => {
        const mine = logs.filter((log) => log.args.provider === wallet.address);
        names.push(...mine.map((log) => log.eventName));
      },
    });
    try {
      await sleep(200);
      const write = (functionName, args) => wallet.writeContract({ ...registryContract, functionName, args });
      await mined(await write("register", [1, ""]));
      await mined(await write("setSchedule", ["Europe/Vienna", 60, 120, 3]));
      await mined(await write("clearSchedule", []));
      await mined(await write("deregister", []));
      const expected = ["Registered", "ScheduleSet", "ScheduleCleared", "Deregistered"];
      await eventually(() => names.length >= 4, "four events");
      assert.deepEqual(names, expected);
    } finally {
      stop();
    }
  });
});

const named = ({ errorName, args = [] }) => [errorName, ...args];

describe("transports", () => {
  const batching = createPublicClient({ chain, transport: http(node.url, { batch: true }) });

  test("a batching client gets its answers in order", async () => {
    const numbers = Array.from({ length: 50 }, (_, i) => BigInt(i % 6));
    const blocks = await Promise.all(numbers.map((blockNumber) => batching.getBlock({ blockNumber })));
    assert.deepEqual(blocks.map((block) => block.number), numbers);
  });

  test("viem's default for a batch is up to 1,000 calls, as geth takes them", async () => {
    const many = await Promise.all(
      Array.from({ length: 300 }, () => batching.getBalance({ address: zeroAddress })),
    );
    assert.equal(many.length, 300);
  });

  test("multicall without a multicall contract", async () => {
    const wallet = await newWallet();
    const contractsToRead = [
      { ...tnzo, functionName: "balanceOf", args: [wallet.address] },
      { ...tnzo, functionName: "symbol" },
      { ...registryContract, functionName: "minimumStake" },
      { ...registryContract, functionName: "endpoint", args: [`0x${"00".repeat(32)}`] },
    ];
    const results = await publicClient.multicall({ contracts: contractsToRead, deployless: true });
    assert.deepEqual(results.slice(0, 3).map((one) => one.result), [DRIP, "TNZO", STAKE]);
    assert.equal(results[3].status, "failure");
  });

  test("a contract can be deployed and called", async () => {
    const wallet = await newWallet({ funded: false });
    const { readFileSync } = await import("node:fs");
    const file = new URL("../../../contracts/artifacts/TNZO.json", import.meta.url);
    const { abi, bytecode } = JSON.parse(readFileSync(file, "utf8"));
    const code = typeof bytecode === "string" ? bytecode : bytecode.object;
    const hash = await wallet.deployContract({ abi, bytecode: code, args: [wallet.address, 77n] });
    const { contractAddress } = await mined(hash);
    const balance = { address: contractAddress, abi, functionName: "balanceOf", args: [wallet.address] };
    assert.equal(await publicClient.readContract(balance), 77n);
  });

  test("a wallet client finds no account of the node to use", async () => {
    const stranger = createWalletClient({ chain, transport: http(node.url) });
    assert.deepEqual(await stranger.getAddresses(), []);
    const account = contracts.tnzo.address;
    await assert.rejects(stranger.sendTransaction({ account, to: account, gas: 100_000n }), {
      name: /./,
    });
  });

  test("an error keeps the node's code and words", async () => {
    await assert.rejects(publicClient.request({ method: "eth_nothing" }), (error) => {
      assert.equal(error.code, -32601);
      return true;
    });
    await assert.rejects(publicClient.request({ method: "eth_getBalance", params: ["0x12", "latest"] }), {
      code: -32602,
    });
  });
});
