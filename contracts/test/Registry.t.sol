// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Bounds} from "../src/Bounds.sol";
import {ProviderRegistry} from "../src/ProviderRegistry.sol";
import {Stakes} from "../src/Stakes.sol";
import {Base} from "./support/Base.sol";

/// @notice Registration, schedules, endpoints, and when an endpoint is active. Prices are in Pricing.
contract RegistryTest is Base {
    ProviderRegistry.Role private constant PROVIDER = ProviderRegistry.Role.ModelProvider;
    bytes32 private constant HASH = keccak256("file");

    function setUp() public {
        deployAll();
        fund(alice, 10 * MINIMUM);
    }

    function text(uint256 length) private pure returns (string memory) {
        bytes memory letters = new bytes(length);
        for (uint256 i = 0; i < length; ++i) {
            letters[i] = "x";
        }
        return string(letters);
    }

    function serve(address who, string memory model, string memory url) private returns (bytes32) {
        vm.prank(who);
        return registry.serveModel(model, HASH, url, "{}");
    }

    function test_deployment() public view {
        vm.assertEq(address(registry.token()), address(token));
        vm.assertEq(registry.arbiter(), ARBITER);
        vm.assertEq(registry.treasury(), TREASURY);
        vm.assertEq(registry.minimumStake(), MINIMUM);
        vm.assertEq(registry.unbondingPeriod(), UNBONDING);
        vm.assertEq(registry.priceDelay(), DELAY);
    }

    // --- Registration -----------------------------------------------------------------------------

    function test_register() public {
        vm.expectEmit(address(registry));
        emit ProviderRegistry.Registered(alice, PROVIDER, "Alice");
        vm.prank(alice);
        registry.register(PROVIDER, "Alice");
        ProviderRegistry.ProviderView memory seen = registry.provider(alice);
        vm.assertEq(seen.provider, alice);
        vm.assertEq(uint8(seen.role), uint8(PROVIDER));
        vm.assertEq(seen.name, "Alice");
        vm.assertEq(seen.registeredAt, START);
        vm.assertEq(registry.providerCount(), 1);
    }

    function test_register_again_renames() public {
        vm.startPrank(alice);
        registry.register(PROVIDER, "Alice");
        vm.warp(START + 10);
        registry.register(PROVIDER, "");
        vm.stopPrank();
        vm.assertEq(registry.provider(alice).name, "");
        vm.assertEq(registry.provider(alice).registeredAt, START);
        vm.assertEq(registry.providerCount(), 1);
    }

    function test_register_asNothing_reverts() public {
        vm.expectRevert(
            abi.encodeWithSelector(ProviderRegistry.InvalidRole.selector, ProviderRegistry.Role.None)
        );
        registry.register(ProviderRegistry.Role.None, "");
        (bool isDone,) =
            address(registry).call(abi.encodeWithSelector(registry.register.selector, uint8(2), "x"));
        vm.assertFalse(isDone);
    }

    function test_deregister_keepsTheRest() public {
        vm.startPrank(alice);
        registry.register(PROVIDER, "Alice");
        registry.stake(MINIMUM);
        registry.setPricing("m", 1, 2);
        registry.setSchedule("UTC", 0, 1440, 127);
        bytes32 id = registry.serveModel("m", HASH, "http://a/v1", "");
        vm.assertTrue(registry.isActive(id));
        vm.expectEmit(address(registry));
        emit ProviderRegistry.Deregistered(alice);
        registry.deregister();
        vm.stopPrank();

        vm.assertFalse(registry.isActive(id));
        ProviderRegistry.ProviderView memory seen = registry.provider(alice);
        vm.assertEq(uint8(seen.role), 0);
        vm.assertEq(seen.name, "");
        vm.assertEq(seen.registeredAt, 0);
        vm.assertEq(seen.staked, MINIMUM);
        vm.assertTrue(seen.schedule.isSet);
        vm.assertFalse(registry.endpoint(id).stopped);

        vm.warp(START + 5);
        vm.prank(alice);
        registry.register(PROVIDER, "again");
        vm.assertTrue(registry.isActive(id));
        vm.assertEq(registry.provider(alice).registeredAt, START + 5);
        vm.assertEq(registry.providerCount(), 1);
    }

    function test_deregister_unregistered_reverts() public {
        vm.expectRevert(abi.encodeWithSelector(ProviderRegistry.NotRegistered.selector, alice));
        vm.prank(alice);
        registry.deregister();
    }

    // --- Schedules --------------------------------------------------------------------------------

    function test_schedule() public {
        vm.startPrank(alice);
        vm.expectEmit(address(registry));
        emit ProviderRegistry.ScheduleSet(alice, "Europe/Vienna", 1320, 360, 0x1f);
        registry.setSchedule("Europe/Vienna", 1320, 360, 0x1f);
        ProviderRegistry.Schedule memory schedule = registry.provider(alice).schedule;
        vm.assertTrue(schedule.isSet);
        vm.assertEq(schedule.timezone, "Europe/Vienna");
        vm.assertEq(schedule.startMinute, 1320);
        vm.assertEq(schedule.endMinute, 360);
        vm.assertEq(schedule.daysMask, 0x1f);

        vm.expectEmit(address(registry));
        emit ProviderRegistry.ScheduleCleared(alice);
        registry.clearSchedule();
        ProviderRegistry.Schedule memory none;
        vm.assertEq(abi.encode(registry.provider(alice).schedule), abi.encode(none));

        vm.recordLogs();
        registry.clearSchedule();
        vm.assertEq(vm.getRecordedLogs().length, 0);
        vm.stopPrank();
    }

    function testFuzz_schedule_bounds(uint16 start, uint16 end, uint8 days_) public {
        start = uint16(bound(start, 0, 1500));
        end = uint16(bound(end, 0, 1500));
        bool isValid = start <= 1439 && end >= 1 && end <= 1440 && start != end && days_ >= 1 && days_ <= 127;
        if (!isValid) {
            vm.expectRevert(
                abi.encodeWithSelector(ProviderRegistry.InvalidSchedule.selector, start, end, days_)
            );
        }
        registry.setSchedule("UTC", start, end, days_);
        vm.assertEq(registry.provider(address(this)).schedule.isSet, isValid);
    }

    // --- Endpoints --------------------------------------------------------------------------------

    function test_serveModel() public {
        bytes32 expected = keccak256(abi.encode(alice, "gemma", "https://a.example/v1"));
        vm.expectEmit(address(registry));
        emit ProviderRegistry.ModelServed(expected, alice, "gemma", HASH, "https://a.example/v1", "{}");
        bytes32 id = serve(alice, "gemma", "https://a.example/v1");
        vm.assertEq(id, expected);
        ProviderRegistry.EndpointView memory seen = registry.endpoint(id);
        vm.assertEq(seen.id, id);
        vm.assertEq(seen.provider, alice);
        vm.assertEq(seen.modelId, "gemma");
        vm.assertEq(seen.modelHash, HASH);
        vm.assertEq(seen.baseUrl, "https://a.example/v1");
        vm.assertEq(seen.meta, "{}");
        vm.assertFalse(seen.stopped);
        vm.assertFalse(seen.active);
        vm.assertEq(seen.updatedAt, START);
        vm.assertFalse(seen.pricing.isSet);
        vm.assertEq(registry.endpointCount(), 1);
    }

    /// Parts that would read the same when put together are different endpoints.
    function test_endpointId_isUnambiguous() public {
        vm.assertTrue(serve(alice, "ab", "c") != serve(alice, "a", "bc"));
    }

    function test_updateEndpoint() public {
        bytes32 id = serve(alice, "m", "u");
        vm.warp(START + 9);
        vm.expectEmit(address(registry));
        emit ProviderRegistry.EndpointUpdated(id, alice, bytes32(uint256(7)), "new");
        vm.prank(alice);
        registry.updateEndpoint(id, bytes32(uint256(7)), "new");
        vm.assertEq(registry.endpoint(id).modelHash, bytes32(uint256(7)));
        vm.assertEq(registry.endpoint(id).meta, "new");
        vm.assertEq(registry.endpoint(id).updatedAt, START + 9);
    }

    function test_stopModel_andServeAgain() public {
        bytes32 id = serve(alice, "m", "u");
        vm.expectEmit(address(registry));
        emit ProviderRegistry.ModelStopped(id, alice);
        vm.startPrank(alice);
        registry.stopModel(id);
        vm.assertTrue(registry.endpoint(id).stopped);
        vm.recordLogs();
        registry.stopModel(id);
        vm.assertEq(vm.getRecordedLogs().length, 0);

        registry.updateEndpoint(id, bytes32(0), "while stopped");
        vm.assertTrue(registry.endpoint(id).stopped);

        vm.assertEq(registry.serveModel("m", bytes32(uint256(2)), "u", "third"), id);
        vm.stopPrank();
        vm.assertFalse(registry.endpoint(id).stopped);
        vm.assertEq(registry.endpoint(id).meta, "third");
        vm.assertEq(registry.endpoint(id).modelHash, bytes32(uint256(2)));
        vm.assertEq(registry.endpointCount(), 1);
        vm.assertEq(registry.endpointsByModel("m", 0, 10).length, 1);
        vm.assertEq(registry.endpointsOf(alice, 0, 10).length, 1);
    }

    function test_attack14_endpointsOfOthers() public {
        bytes32 id = serve(alice, "m", "u");
        bytes memory notOwner = abi.encodeWithSelector(ProviderRegistry.NotEndpointOwner.selector, id, bob);
        vm.startPrank(bob);
        vm.expectRevert(notOwner);
        registry.stopModel(id);
        vm.expectRevert(notOwner);
        registry.updateEndpoint(id, 0, "");
        // The same model at the same address is another endpoint, and not Alice's.
        vm.assertTrue(registry.serveModel("m", 0, "u", "impostor") != id);
        vm.stopPrank();
        vm.assertEq(registry.endpoint(id).meta, "{}");
        vm.assertEq(registry.endpointsByModel("m", 0, 10)[1].provider, bob);
    }

    function test_unknownEndpoint() public {
        bytes32 id = keccak256("nothing");
        bytes memory notFound = abi.encodeWithSelector(ProviderRegistry.EndpointNotFound.selector, id);
        vm.assertFalse(registry.isActive(id));
        vm.expectRevert(notFound);
        registry.endpoint(id);
        vm.expectRevert(notFound);
        registry.stopModel(id);
        vm.expectRevert(notFound);
        registry.updateEndpoint(id, 0, "");
    }

    // --- Lengths ----------------------------------------------------------------------------------

    function refused(string memory field, uint256 length, uint256 minimum, uint256 maximum) private {
        vm.expectRevert(
            abi.encodeWithSelector(Bounds.InvalidLength.selector, field, length, minimum, maximum)
        );
    }

    function test_lengths() public {
        vm.assertEq(registry.MAX_MODEL_ID(), 128);
        vm.assertEq(registry.MAX_BASE_URL(), 256);
        vm.assertEq(registry.MAX_META(), 1024);
        vm.assertEq(registry.MAX_NAME(), 64);
        vm.assertEq(registry.MAX_TIMEZONE(), 64);
        bytes32 id = registry.serveModel(text(128), 0, text(256), text(1024));
        registry.updateEndpoint(id, 0, text(1024));
        registry.register(PROVIDER, text(64));
        registry.setSchedule(text(64), 0, 1, 1);
        registry.setPricing(text(128), 1, 1);

        refused("modelId", 129, 1, 128);
        registry.serveModel(text(129), 0, "u", "");
        refused("modelId", 0, 1, 128);
        registry.serveModel("", 0, "u", "");
        refused("baseUrl", 257, 1, 256);
        registry.serveModel("m", 0, text(257), "");
        refused("baseUrl", 0, 1, 256);
        registry.serveModel("m", 0, "", "");
        refused("meta", 1025, 0, 1024);
        registry.serveModel("m", 0, "u", text(1025));
        refused("meta", 1025, 0, 1024);
        registry.updateEndpoint(id, 0, text(1025));
        refused("name", 65, 0, 64);
        registry.register(PROVIDER, text(65));
        refused("timezone", 65, 1, 64);
        registry.setSchedule(text(65), 0, 1, 1);
        refused("timezone", 0, 1, 64);
        registry.setSchedule("", 0, 1, 1);
        refused("modelId", 129, 1, 128);
        registry.setPricing(text(129), 1, 1);
        refused("modelId", 0, 1, 128);
        registry.setPricing("", 1, 1);
    }

    // --- Active -----------------------------------------------------------------------------------

    /// Every order of the four steps; active after the last, never before.
    function test_attack16_active_inEveryOrder() public {
        for (uint256 order = 0; order < 256; ++order) {
            uint256[4] memory steps = [order & 3, (order >> 2) & 3, (order >> 4) & 3, order >> 6];
            uint256 done = (1 << steps[0]) | (1 << steps[1]) | (1 << steps[2]) | (1 << steps[3]);
            if (done != 15) continue;
            uint256 state = vm.snapshotState();
            bytes32 id = keccak256(abi.encode(alice, "m", "u"));
            for (uint256 i = 0; i < 4; ++i) {
                vm.assertFalse(registry.isActive(id));
                step(steps[i]);
            }
            vm.assertTrue(registry.isActive(id));
            vm.assertTrue(registry.endpoint(id).active);
            vm.revertToState(state);
        }
    }

    function step(uint256 which) private {
        vm.startPrank(alice);
        if (which == 0) registry.register(PROVIDER, "");
        else if (which == 1) registry.stake(MINIMUM);
        else if (which == 2) registry.setPricing("m", 0, 0);
        else registry.serveModel("m", HASH, "u", "");
        vm.stopPrank();
    }

    function active() private returns (bytes32) {
        for (uint256 i = 0; i < 4; ++i) {
            step(i);
        }
        return keccak256(abi.encode(alice, "m", "u"));
    }

    function test_attack16_offTheListAtOnce() public {
        bytes32 id = active();
        vm.startPrank(alice);
        registry.requestUnstake(1);
        vm.assertFalse(registry.isActive(id));
        registry.cancelUnstake();
        vm.assertTrue(registry.isActive(id));
        registry.stopModel(id);
        vm.assertFalse(registry.isActive(id));
        registry.serveModel("m", HASH, "u", "");
        vm.assertTrue(registry.isActive(id));
        vm.stopPrank();
        vm.prank(ARBITER);
        registry.slash(alice, 1, "");
        vm.assertFalse(registry.isActive(id));
        vm.prank(alice);
        registry.stake(1);
        vm.assertTrue(registry.isActive(id));
    }

    /// Slashed below the minimum means off the list, whatever is unbonding beside it.
    function test_attack16_unbondingDoesNotCarryTheListing() public {
        bytes32 id = active();
        vm.startPrank(alice);
        registry.stake(MINIMUM);
        registry.requestUnstake(MINIMUM);
        vm.stopPrank();
        vm.assertTrue(registry.isActive(id));
        vm.prank(ARBITER);
        registry.slash(alice, 1, "");
        vm.assertFalse(registry.isActive(id));
    }

    /// One stake lists one provider.
    function test_attack16_stakeOfAnother() public {
        active();
        vm.startPrank(bob);
        registry.register(PROVIDER, "");
        registry.setPricing("m", 0, 0);
        bytes32 id = registry.serveModel("m", HASH, "u", "");
        vm.stopPrank();
        vm.assertFalse(registry.isActive(id));
    }

    function test_multicall() public {
        bytes[] memory calls = new bytes[](4);
        calls[0] = abi.encodeCall(registry.register, (PROVIDER, "Alice"));
        calls[1] = abi.encodeCall(registry.stake, (MINIMUM));
        calls[2] = abi.encodeCall(registry.setPricing, ("m", 1, 2));
        calls[3] = abi.encodeCall(registry.serveModel, ("m", HASH, "u", ""));
        vm.prank(alice);
        bytes[] memory results = registry.multicall(calls);
        bytes32 id = abi.decode(results[3], (bytes32));
        vm.assertTrue(registry.isActive(id));
        vm.assertEq(registry.endpoint(id).provider, alice);
    }

    /// One that fails undoes all, and says why.
    function test_multicall_failure_undoesAll() public {
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(registry.register, (PROVIDER, "Alice"));
        calls[1] = abi.encodeCall(registry.requestUnstake, (5));
        vm.expectRevert(abi.encodeWithSelector(Stakes.InsufficientBonded.selector, 5, 0));
        vm.prank(alice);
        registry.multicall(calls);
        vm.assertEq(registry.providerCount(), 0);
    }

    // --- Pages ------------------------------------------------------------------------------------

    function test_attack35_pages() public {
        vm.assertEq(registry.MAX_PAGE(), 100);
        for (uint160 i = 1; i <= 130; ++i) {
            vm.startPrank(address(i));
            registry.register(PROVIDER, "");
            registry.serveModel("m", HASH, "u", "");
            vm.stopPrank();
        }
        for (uint256 i = 0; i < 130; ++i) {
            serve(alice, "other", string(abi.encodePacked("u", bytes32(i))));
        }

        vm.assertEq(registry.providerCount(), 130);
        vm.assertEq(registry.endpointCount(), 260);
        uint256 seen = 0;
        while (true) {
            ProviderRegistry.ProviderView[] memory page = registry.providers(seen, 1000);
            if (page.length == 0) break;
            vm.assertLe(page.length, 100);
            for (uint256 i = 0; i < page.length; ++i) {
                vm.assertEq(page[i].provider, address(uint160(++seen)));
            }
        }
        vm.assertEq(seen, 130);
        vm.assertEq(registry.endpoints(0, type(uint256).max).length, 100);
        vm.assertEq(registry.endpoints(200, 100).length, 60);
        vm.assertEq(registry.endpoints(259, 5)[0].provider, alice);
        vm.assertEq(registry.endpoints(260, 5).length, 0);
        vm.assertEq(registry.endpoints(type(uint256).max, type(uint256).max).length, 0);
        vm.assertEq(registry.endpoints(0, 0).length, 0);
        vm.assertEq(registry.endpointsByModel("m", 100, 100).length, 30);
        vm.assertEq(registry.endpointsByModel("none", 0, 100).length, 0);
        vm.assertEq(registry.endpointsOf(alice, 100, 100).length, 30);
        vm.assertEq(registry.endpointsOf(bob, 0, 100).length, 0);
    }
}
