// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ProviderRegistry} from "../../src/ProviderRegistry.sol";
import {Base} from "../support/Base.sol";
import {Vm} from "../support/Vm.sol";
import {RegistryMirror} from "./RegistryMirror.sol";

/// @notice Three providers and the arbiter do anything at any time; what is refused changes nothing.
contract RegistryHandler is Base {
    RegistryMirror private immutable _mirror = new RegistryMirror(MINIMUM);
    uint256 private constant FUNDS = 100 * MINIMUM;
    uint256 private _given;

    constructor() {
        deployAll();
        fund(alice, FUNDS);
        fund(bob, FUNDS);
        fund(carol, FUNDS);
    }

    function act(address who, bytes memory call) private {
        vm.recordLogs();
        vm.prank(who);
        (bool isDone,) = address(registry).call(call);
        Vm.Log[] memory logs = vm.getRecordedLogs();
        // Forge also records what was undone.
        if (!isDone) return;
        for (uint256 i = 0; i < logs.length; ++i) {
            if (logs[i].emitter == address(registry)) _mirror.take(logs[i]);
        }
    }

    function actor(uint256 seed) public view returns (address) {
        return [alice, bob, carol][seed % 3];
    }

    function model(uint256 seed) public pure returns (string memory) {
        return ["m", "n"][seed % 2];
    }

    function someId(uint256 seed) private view returns (bytes32) {
        uint256 count = _mirror.endpointCount();
        return count == 0 ? bytes32(seed) : _mirror.endpointIds(seed % count);
    }

    function register(uint256 who, bool isNamed) external {
        bytes memory call = abi.encodeCall(
            registry.register, (ProviderRegistry.Role.ModelProvider, isNamed ? "somebody" : "")
        );
        act(actor(who), call);
    }

    function deregister(uint256 who) external {
        act(actor(who), abi.encodeCall(registry.deregister, ()));
    }

    function stake(uint256 who, uint256 amount) external {
        act(actor(who), abi.encodeCall(registry.stake, (bound(amount, 0, 3 * MINIMUM))));
    }

    function requestUnstake(uint256 who, uint256 amount) external {
        act(actor(who), abi.encodeCall(registry.requestUnstake, (bound(amount, 0, 3 * MINIMUM))));
    }

    function cancelUnstake(uint256 who) external {
        act(actor(who), abi.encodeCall(registry.cancelUnstake, ()));
    }

    function withdrawStake(uint256 who) external {
        act(actor(who), abi.encodeCall(registry.withdrawStake, ()));
    }

    function slash(uint256 who, uint256 amount, bool isArbiter) external {
        bytes memory call = abi.encodeCall(registry.slash, (actor(who), bound(amount, 0, MINIMUM), "why"));
        act(isArbiter ? ARBITER : actor(amount), call);
    }

    function setSchedule(uint256 who, uint16 start, uint16 end, uint8 days_) external {
        bytes memory call =
            abi.encodeCall(registry.setSchedule, ("UTC", start % 1500, end % 1500, days_ % 130));
        act(actor(who), call);
    }

    function clearSchedule(uint256 who) external {
        act(actor(who), abi.encodeCall(registry.clearSchedule, ()));
    }

    function serveModel(uint256 who, uint256 what, uint256 where) external {
        string memory url = ["http://a/v1", "http://b/v1"][where % 2];
        bytes memory call = abi.encodeCall(registry.serveModel, (model(what), bytes32(what), url, "{}"));
        act(actor(who), call);
    }

    function updateEndpoint(uint256 who, uint256 which, bytes32 hash) external {
        act(actor(who), abi.encodeCall(registry.updateEndpoint, (someId(which), hash, "updated")));
    }

    function stopModel(uint256 who, uint256 which) external {
        act(actor(who), abi.encodeCall(registry.stopModel, (someId(which))));
    }

    function setPricing(uint256 who, uint256 what, uint128 input, uint128 output) external {
        act(actor(who), abi.encodeCall(registry.setPricing, (model(what), input % 10, output % 10)));
    }

    function many(uint256 who, uint256 what) external {
        bytes[] memory calls = new bytes[](3);
        calls[0] = abi.encodeCall(registry.register, (ProviderRegistry.Role.ModelProvider, "many"));
        calls[1] = abi.encodeCall(registry.stake, (MINIMUM));
        calls[2] = abi.encodeCall(registry.setPricing, (model(what), 1, 1));
        act(actor(who), abi.encodeCall(registry.multicall, (calls)));
    }

    /// Tokens sent past the functions are nobody's stake.
    function give(uint256 amount) external {
        amount = bound(amount, 0, 1e18);
        _given += amount;
        token.transfer(address(registry), amount);
    }

    function wait(uint256 time) external {
        vm.warp(block.timestamp + bound(time, 0, time % 2 == 0 ? 2 * DELAY : 8 days));
    }

    // --- What has to hold -------------------------------------------------------------------------

    function checkMoney() external view {
        uint256 staked = 0;
        uint256 held = token.balanceOf(TREASURY) + token.balanceOf(address(this));
        for (uint256 i = 0; i < 3; ++i) {
            ProviderRegistry.ProviderView memory its = registry.provider(actor(i));
            vm.assertLe(its.unbonding, its.staked, "more unbonding than staked");
            vm.assertEq(its.unbonding == 0, its.unbondingUntil == 0);
            staked += its.staked;
            held += token.balanceOf(actor(i));
        }
        vm.assertEq(token.balanceOf(address(registry)), staked + _given, "balance and stakes");
        vm.assertEq(held + token.balanceOf(address(registry)), SUPPLY, "all TNZO");
        vm.assertEq(token.totalSupply(), SUPPLY, "supply");
    }

    function checkActive() external view {
        for (uint256 i = 0; i < _mirror.endpointCount(); ++i) {
            ProviderRegistry.EndpointView memory its = registry.endpoint(_mirror.endpointIds(i));
            ProviderRegistry.ProviderView memory whose = registry.provider(its.provider);
            bool expected = whose.role != ProviderRegistry.Role.None
                && whose.staked - whose.unbonding >= MINIMUM && its.pricing.isSet && !its.stopped;
            vm.assertEq(its.active, expected);
            vm.assertEq(registry.isActive(its.id), expected);
        }
    }

    function checkEventsTellAll() external view {
        for (uint256 i = 0; i < 3; ++i) {
            vm.assertEq(abi.encode(registry.provider(actor(i))), abi.encode(_mirror.provider(actor(i))));
            for (uint256 k = 0; k < 2; ++k) {
                vm.assertEq(
                    abi.encode(registry.pricing(actor(i), model(k))),
                    abi.encode(_mirror.pricing(actor(i), model(k)))
                );
            }
        }
        vm.assertEq(registry.endpointCount(), _mirror.endpointCount());
        for (uint256 i = 0; i < _mirror.endpointCount(); ++i) {
            bytes32 id = _mirror.endpointIds(i);
            vm.assertEq(abi.encode(registry.endpoint(id)), abi.encode(_mirror.endpoint(id)));
        }
    }
}

contract RegistryInvariantTest {
    RegistryHandler private _handler;

    function setUp() public {
        _handler = new RegistryHandler();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_handler);
    }

    /// Balance = sum of stakes, and no TNZO comes from or goes to nowhere.
    function invariant_money() public view {
        _handler.checkMoney();
    }

    /// Active is registered, bonded, priced and not stopped: no more, no less.
    function invariant_attack16_active() public view {
        _handler.checkActive();
    }

    /// Whoever knows the events knows everything.
    function invariant_eventsTellAll() public view {
        _handler.checkEventsTellAll();
    }
}
