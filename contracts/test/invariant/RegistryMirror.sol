// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ProviderRegistry} from "../../src/ProviderRegistry.sol";
import {Stakes} from "../../src/Stakes.sol";
import {Vm} from "../support/Vm.sol";

/// @notice The registry as somebody sees it who knows its events alone, and when they were emitted. What
/// crates/tenzro-ledger does; kept as the registry's own views, so that the two can be compared.
contract RegistryMirror {
    uint256 private immutable _minimumStake;

    mapping(address => ProviderRegistry.ProviderView) private _providers;
    mapping(address => mapping(string => ProviderRegistry.Pricing)) private _pricing;
    mapping(bytes32 => ProviderRegistry.EndpointView) private _endpoints;
    bytes32[] public endpointIds;

    constructor(uint256 minimumStake) {
        _minimumStake = minimumStake;
    }

    function take(Vm.Log memory log) external {
        bytes32 kind = log.topics[0];
        if (kind == ProviderRegistry.ModelServed.selector) return served(log);
        if (kind == ProviderRegistry.EndpointUpdated.selector) {
            ProviderRegistry.EndpointView storage updated = _endpoints[log.topics[1]];
            (updated.modelHash, updated.meta) = abi.decode(log.data, (bytes32, string));
            updated.updatedAt = uint64(block.timestamp);
            return;
        }
        if (kind == ProviderRegistry.ModelStopped.selector) {
            _endpoints[log.topics[1]].stopped = true;
            _endpoints[log.topics[1]].updatedAt = uint64(block.timestamp);
            return;
        }
        address who = address(uint160(uint256(log.topics[1])));
        if (kind == ProviderRegistry.PricingSet.selector) return priced(who, log.data);
        ProviderRegistry.ProviderView storage its = _providers[who];
        if (kind == ProviderRegistry.Registered.selector) {
            if (its.role == ProviderRegistry.Role.None) its.registeredAt = uint64(block.timestamp);
            (its.role, its.name) = abi.decode(log.data, (ProviderRegistry.Role, string));
        } else if (kind == ProviderRegistry.Deregistered.selector) {
            (its.role, its.name, its.registeredAt) = (ProviderRegistry.Role.None, "", 0);
        } else if (kind == ProviderRegistry.ScheduleSet.selector) {
            ProviderRegistry.Schedule memory schedule;
            (schedule.timezone, schedule.startMinute, schedule.endMinute, schedule.daysMask) =
                abi.decode(log.data, (string, uint16, uint16, uint8));
            schedule.isSet = true;
            its.schedule = schedule;
        } else if (kind == ProviderRegistry.ScheduleCleared.selector) {
            delete its.schedule;
        } else if (kind == Stakes.Staked.selector) {
            (, its.staked) = abi.decode(log.data, (uint256, uint256));
        } else if (kind == Stakes.UnstakeRequested.selector) {
            (, its.unbonding, its.unbondingUntil) = abi.decode(log.data, (uint256, uint256, uint64));
        } else if (kind == Stakes.UnstakeCancelled.selector) {
            (its.unbonding, its.unbondingUntil) = (0, 0);
        } else if (kind == Stakes.StakeWithdrawn.selector) {
            (, its.staked) = abi.decode(log.data, (uint256, uint256));
            (its.unbonding, its.unbondingUntil) = (0, 0);
        } else if (kind == Stakes.Slashed.selector) {
            (, its.staked, its.unbonding,) = abi.decode(log.data, (uint256, uint256, uint256, string));
            if (its.unbonding == 0) its.unbondingUntil = 0;
        } else {
            revert("an unknown event");
        }
    }

    function served(Vm.Log memory log) private {
        bytes32 id = log.topics[1];
        ProviderRegistry.EndpointView storage its = _endpoints[id];
        if (its.provider == address(0)) endpointIds.push(id);
        its.id = id;
        its.provider = address(uint160(uint256(log.topics[2])));
        (its.modelId, its.modelHash, its.baseUrl, its.meta) =
            abi.decode(log.data, (string, bytes32, string, string));
        its.stopped = false;
        its.updatedAt = uint64(block.timestamp);
    }

    function priced(address who, bytes memory data) private {
        (string memory modelId, uint64 version, uint128 input, uint128 output, uint64 effectiveAt) =
            abi.decode(data, (string, uint64, uint128, uint128, uint64));
        ProviderRegistry.Pricing memory its = pricing(who, modelId);
        (its.isSet, its.version) = (true, version);
        if (effectiveAt > block.timestamp) {
            (its.pendingAt, its.pendingInputPrice, its.pendingOutputPrice) = (effectiveAt, input, output);
        } else {
            (its.inputPrice, its.outputPrice) = (input, output);
            (its.pendingAt, its.pendingInputPrice, its.pendingOutputPrice) = (0, 0, 0);
        }
        _pricing[who][modelId] = its;
    }

    function provider(address who) external view returns (ProviderRegistry.ProviderView memory its) {
        its = _providers[who];
        its.provider = who;
    }

    function pricing(
        address who,
        string memory modelId
    ) public view returns (ProviderRegistry.Pricing memory its) {
        its = _pricing[who][modelId];
        if (its.pendingAt != 0 && its.pendingAt <= block.timestamp) {
            (its.inputPrice, its.outputPrice) = (its.pendingInputPrice, its.pendingOutputPrice);
            (its.pendingAt, its.pendingInputPrice, its.pendingOutputPrice) = (0, 0, 0);
        }
    }

    function endpoint(bytes32 id) external view returns (ProviderRegistry.EndpointView memory its) {
        its = _endpoints[id];
        its.pricing = pricing(its.provider, its.modelId);
        ProviderRegistry.ProviderView storage whose = _providers[its.provider];
        its.active = whose.role == ProviderRegistry.Role.ModelProvider
            && whose.staked >= whose.unbonding + _minimumStake && its.pricing.isSet && !its.stopped;
    }

    function endpointCount() external view returns (uint256) {
        return endpointIds.length;
    }
}
