// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {PaymentChannels} from "../../src/PaymentChannels.sol";
import {Base} from "../support/Base.sol";
import {Vm} from "../support/Vm.sol";

/// @notice Two payers and two payees do anything at any time, also what is not theirs to do; what is refused
/// changes nothing.
contract ChannelsHandler is Base {
    uint256 private constant FUNDS = 1e24;
    uint256 private constant SESSION_KEY = 0x5E5510;
    uint256 private constant DAVE_KEY = 0xDA7E;
    address private immutable dave = vm.addr(DAVE_KEY);

    bytes32[] private _ids;
    /// The channels as their events tell.
    mapping(bytes32 id => PaymentChannels.Channel) private _mirror;
    /// As they were when they were closed.
    mapping(bytes32 id => bytes) private _closed;
    uint256 private _nonce;

    constructor() {
        deployAll();
        fund(alice, FUNDS);
        fund(carol, FUNDS);
    }

    // --- Doing ------------------------------------------------------------------------------------

    function act(address who, bytes memory call) private {
        vm.recordLogs();
        vm.prank(who);
        (bool isDone,) = address(channels).call(call);
        Vm.Log[] memory logs = vm.getRecordedLogs();
        // Forge also records what was undone.
        if (!isDone) return;
        for (uint256 i = 0; i < logs.length; ++i) {
            if (logs[i].emitter == address(channels)) take(logs[i]);
        }
    }

    function take(Vm.Log memory log) private {
        bytes32 kind = log.topics[0];
        bytes32 id = log.topics[1];
        PaymentChannels.Channel storage its = _mirror[id];
        if (kind == PaymentChannels.SettlementSkipped.selector) return;
        if (kind == PaymentChannels.ChannelOpened.selector) {
            _ids.push(id);
            its.payer = address(uint160(uint256(log.topics[2])));
            its.payee = address(uint160(uint256(log.topics[3])));
            (its.token, its.authorizedSigner,, its.deposit) =
                abi.decode(log.data, (address, address, bytes32, uint128));
        } else if (kind == PaymentChannels.ChannelToppedUp.selector) {
            (,, its.deposit) = abi.decode(log.data, (address, uint128, uint128));
        } else if (kind == PaymentChannels.ChannelSettled.selector) {
            (, its.settled) = abi.decode(log.data, (uint128, uint128));
        } else if (kind == PaymentChannels.CloseRequested.selector) {
            its.closeRequestedAt = uint64(abi.decode(log.data, (uint256))) - GRACE;
        } else if (kind == PaymentChannels.CloseRequestCancelled.selector) {
            its.closeRequestedAt = 0;
        } else if (kind == PaymentChannels.ChannelClosed.selector) {
            its.finalized = true;
            _closed[id] = abi.encode(channels.getChannel(id));
        } else {
            revert("an unknown event");
        }
    }

    function payerKey(uint256 seed) private pure returns (uint256) {
        return seed % 2 == 0 ? ALICE_KEY : CAROL_KEY;
    }

    function payee(uint256 seed) private view returns (address) {
        return seed % 2 == 0 ? bob : dave;
    }

    /// Mostly who it has to be, sometimes another.
    function caller(address right, uint256 seed) private view returns (address) {
        if (seed % 8 != 0) return right;
        return [alice, bob, carol, dave][(seed / 8) % 4];
    }

    function someId(uint256 seed) private view returns (bytes32) {
        return _ids.length == 0 ? bytes32(seed) : _ids[seed % _ids.length];
    }

    /// Around what the channel holds; often more than was settled.
    function someAmount(bytes32 id, uint256 seed) private view returns (uint128) {
        return uint128(bound(seed, 0, uint256(_mirror[id].deposit) + 100));
    }

    function keyOf(address who) private view returns (uint256) {
        if (who == alice) return ALICE_KEY;
        if (who == bob) return BOB_KEY;
        if (who == carol) return CAROL_KEY;
        return DAVE_KEY;
    }

    /// Mostly of the right signer.
    function someVoucher(bytes32 id, uint128 amount, uint256 seed) private view returns (bytes memory) {
        PaymentChannels.Channel storage its = _mirror[id];
        uint256 key = its.authorizedSigner == address(0) ? keyOf(its.payer) : SESSION_KEY;
        return voucher(seed % 8 == 0 ? BOB_KEY : key, id, amount);
    }

    function open(uint256 who, uint256 whom, uint128 deposit, bool hasSigner, bool isSigned) external {
        deposit = uint128(bound(deposit, 0, 1e21));
        uint256 key = payerKey(who);
        address payer = vm.addr(key);
        address signer = hasSigner ? vm.addr(SESSION_KEY) : address(0);
        // Few salts, so that ids are tried again.
        bytes32 salt = bytes32(uint256(who / 2) % 16);
        if (!isSigned) {
            act(payer, abi.encodeCall(channels.open, (payee(whom), address(token), deposit, salt, signer)));
            return;
        }
        bytes32 nonce = keccak256(abi.encode(payer, payee(whom), address(token), salt, signer));
        bytes memory signature = deposit3009(key, deposit, nonce);
        bytes memory call = abi.encodeCall(
            channels.openWithAuthorization,
            (payee(whom), address(token), deposit, salt, signer, payer, 0, FOR_EVER, nonce, signature)
        );
        act(dave, call);
    }

    function topUp(uint256 which, uint128 amount, uint256 who, bool isSigned) external {
        bytes32 id = someId(which);
        amount = uint128(bound(amount, 0, 1e20));
        if (!isSigned) {
            act(caller(_mirror[id].payer, who), abi.encodeCall(channels.topUp, (id, amount)));
            return;
        }
        uint256 key = payerKey(who);
        bytes32 salt = bytes32(++_nonce);
        bytes32 nonce = keccak256(abi.encode(id, amount, vm.addr(key), salt));
        bytes memory signature = deposit3009(key, amount, nonce);
        bytes memory call = abi.encodeCall(
            channels.topUpWithAuthorization, (id, amount, vm.addr(key), salt, 0, FOR_EVER, nonce, signature)
        );
        act(bob, call);
    }

    function settle(uint256 which, uint256 amount_, uint256 who) external {
        bytes32 id = someId(which);
        uint128 amount = someAmount(id, amount_);
        bytes memory signature = someVoucher(id, amount, who / 3);
        act(caller(_mirror[id].payee, who), abi.encodeCall(channels.settle, (id, amount, signature)));
    }

    function settleBatch(uint256 seed, uint256 who) external {
        PaymentChannels.Settlement[] memory rows = new PaymentChannels.Settlement[](seed % 5);
        for (uint256 i = 0; i < rows.length; ++i) {
            seed = uint256(keccak256(abi.encode(seed)));
            bytes32 id = someId(seed);
            uint128 amount = someAmount(id, seed >> 32);
            rows[i] = PaymentChannels.Settlement(id, amount, someVoucher(id, amount, seed >> 16));
        }
        act(payee(who), abi.encodeCall(channels.settleBatch, (rows)));
    }

    function settleOrCloseSigned(uint256 which, uint256 amount_, uint256 nonce, bool isClose) external {
        bytes32 id = someId(which);
        uint128 amount = someAmount(id, amount_);
        // Few nonces, so that they are tried again.
        nonce %= 8;
        string memory kind = isClose ? "Close" : "Settle";
        bytes memory ofPayee = payeeAuthorization(keyOf(_mirror[id].payee), kind, id, amount, nonce, FOR_EVER);
        bytes memory ofPayer = someVoucher(id, amount, which / 3);
        bytes memory arguments = abi.encode(id, amount, nonce, FOR_EVER, ofPayee, ofPayer);
        bytes4 selector =
            isClose ? channels.closeWithAuthorization.selector : channels.settleWithAuthorization.selector;
        act(carol, abi.encodePacked(selector, arguments));
    }

    function close(uint256 which, uint256 amount_, uint256 who) external {
        bytes32 id = someId(which);
        uint128 amount = someAmount(id, amount_);
        bytes memory signature = someVoucher(id, amount, who / 3);
        act(caller(_mirror[id].payee, who), abi.encodeCall(channels.close, (id, amount, signature)));
    }

    function requestClose(uint256 which, uint256 who) external {
        bytes32 id = someId(which);
        act(caller(_mirror[id].payer, who), abi.encodeCall(channels.requestClose, (id)));
    }

    function withdraw(uint256 which, uint256 who) external {
        bytes32 id = someId(which);
        act(caller(_mirror[id].payer, who), abi.encodeCall(channels.withdraw, (id)));
    }

    function wait(uint256 time) external {
        vm.warp(block.timestamp + bound(time, 0, GRACE));
    }

    // --- What has to hold -------------------------------------------------------------------------

    function checkMoney() external view {
        uint256 deposits = 0;
        uint256 payouts = 0;
        uint256 refunds = 0;
        for (uint256 i = 0; i < _ids.length; ++i) {
            PaymentChannels.Channel memory its = channels.getChannel(_ids[i]);
            vm.assertLe(its.settled, its.deposit, "settled more than deposited");
            deposits += its.deposit;
            payouts += its.settled;
            if (its.finalized) refunds += its.deposit - its.settled;
        }
        uint256 held = token.balanceOf(address(channels));
        uint256 ofPayers = token.balanceOf(alice) + token.balanceOf(carol);
        uint256 ofPayees = token.balanceOf(bob) + token.balanceOf(dave);
        vm.assertEq(payouts + refunds + held, deposits, "payouts + refunds + held = deposits");
        vm.assertEq(ofPayees, payouts, "payees have what was settled");
        vm.assertEq(ofPayers + deposits, 2 * FUNDS + refunds, "payers have the rest");
        vm.assertEq(ofPayers + ofPayees + held + token.balanceOf(address(this)), SUPPLY, "all TNZO");
    }

    function checkClosedStayClosed() external view {
        for (uint256 i = 0; i < _ids.length; ++i) {
            if (_closed[_ids[i]].length == 0) continue;
            vm.assertEq(abi.encode(channels.getChannel(_ids[i])), _closed[_ids[i]]);
        }
    }

    function checkEventsTellAll() external view {
        for (uint256 i = 0; i < _ids.length; ++i) {
            vm.assertEq(abi.encode(channels.getChannel(_ids[i])), abi.encode(_mirror[_ids[i]]));
        }
    }
}

contract ChannelsInvariantTest {
    ChannelsHandler private _handler;

    function setUp() public {
        _handler = new ChannelsHandler();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_handler);
    }

    /// Payouts + refunds + what is held = deposits; nothing is settled that was not deposited.
    function invariant_attack01_money() public view {
        _handler.checkMoney();
    }

    /// A closed channel never changes, and so moves no money.
    function invariant_attack04_closedStayClosed() public view {
        _handler.checkClosedStayClosed();
    }

    /// Whoever knows the events knows every channel.
    function invariant_eventsTellAll() public view {
        _handler.checkEventsTellAll();
    }
}
