// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ProviderRegistry} from "../src/ProviderRegistry.sol";
import {Base} from "./support/Base.sol";

/// @notice Nobody is charged a price that he could not see `priceDelay` before.
contract PricingTest is Base {
    function setUp() public {
        deployAll();
    }

    function set(uint128 input, uint128 output) private {
        vm.prank(alice);
        registry.setPricing("m", input, output);
    }

    /// Version, what holds now, and what is pending.
    function expect(
        uint64 version,
        uint128[2] memory now_,
        uint256 pendingAt,
        uint128[2] memory pending
    ) private view {
        ProviderRegistry.Pricing memory seen = registry.pricing(alice, "m");
        vm.assertTrue(seen.isSet);
        vm.assertEq(seen.version, version, "version");
        vm.assertEq(seen.inputPrice, now_[0], "input");
        vm.assertEq(seen.outputPrice, now_[1], "output");
        vm.assertEq(seen.pendingAt, pendingAt, "pending at");
        vm.assertEq(seen.pendingInputPrice, pending[0], "pending input");
        vm.assertEq(seen.pendingOutputPrice, pending[1], "pending output");
    }

    function announced(uint64 version, uint128 input, uint128 output, uint256 at_) private {
        vm.expectEmit(address(registry));
        emit ProviderRegistry.PricingSet(alice, "m", version, input, output, uint64(at_));
    }

    function test_unset() public view {
        ProviderRegistry.Pricing memory none;
        vm.assertEq(abi.encode(registry.pricing(alice, "m")), abi.encode(none));
    }

    function test_first_atOnce() public {
        announced(1, 5, 9, START);
        set(5, 9);
        expect(1, [uint128(5), 9], 0, [uint128(0), 0]);
    }

    function test_freeIsAPrice() public {
        set(0, 0);
        expect(1, [uint128(0), 0], 0, [uint128(0), 0]);
        announced(2, 0, 1, START + DELAY);
        set(0, 1);
        expect(2, [uint128(0), 0], START + DELAY, [uint128(0), 1]);
    }

    function test_fall_atOnce() public {
        set(5, 9);
        announced(2, 5, 8, START);
        set(5, 8);
        expect(2, [uint128(5), 8], 0, [uint128(0), 0]);
    }

    function test_same_atOnce() public {
        set(5, 9);
        announced(2, 5, 9, START);
        set(5, 9);
        expect(2, [uint128(5), 9], 0, [uint128(0), 0]);
    }

    function test_rise_waits() public {
        set(5, 9);
        announced(2, 5, 10, START + DELAY);
        set(5, 10);
        vm.warp(START + DELAY - 1);
        expect(2, [uint128(5), 9], START + DELAY, [uint128(5), 10]);
        vm.warp(START + DELAY);
        expect(2, [uint128(5), 10], 0, [uint128(0), 0]);
    }

    /// One part rising is a rise, however much the other falls: all of it waits.
    function test_attack18_mixedWaits() public {
        set(5, 9);
        announced(2, 0, 10, START + DELAY);
        set(0, 10);
        expect(2, [uint128(5), 9], START + DELAY, [uint128(0), 10]);
        announced(3, 6, 0, START + DELAY);
        set(6, 0);
        expect(3, [uint128(5), 9], START + DELAY, [uint128(6), 0]);
    }

    /// The last second of one rise's notice does not serve another.
    function test_attack18_riseBehindARise() public {
        set(5, 9);
        set(6, 9);
        vm.warp(START + DELAY - 1);
        announced(3, 600, 900, START + 2 * uint256(DELAY) - 1);
        set(600, 900);
        vm.warp(START + 2 * uint256(DELAY) - 2);
        expect(3, [uint128(5), 9], START + 2 * uint256(DELAY) - 1, [uint128(600), 900]);
        vm.warp(START + 2 * uint256(DELAY) - 1);
        expect(3, [uint128(600), 900], 0, [uint128(0), 0]);
    }

    /// A smaller rise than the pending one waits its own time as well.
    function test_attack18_smallerRiseBehindARise() public {
        set(5, 9);
        set(50, 90);
        vm.warp(START + 30);
        announced(3, 6, 9, START + 30 + DELAY);
        set(6, 9);
        vm.warp(START + DELAY);
        expect(3, [uint128(5), 9], START + 30 + DELAY, [uint128(6), 9]);
    }

    /// A fall drops the rise that was pending.
    function test_fallBehindARise() public {
        set(5, 9);
        set(50, 90);
        announced(3, 4, 9, START);
        set(4, 9);
        expect(3, [uint128(4), 9], 0, [uint128(0), 0]);
        vm.warp(START + DELAY);
        expect(3, [uint128(4), 9], 0, [uint128(0), 0]);
    }

    /// Down and up again is a rise, and not a return.
    function test_attack18_downAndUp() public {
        set(5, 9);
        set(1, 1);
        announced(3, 5, 9, START + DELAY);
        set(5, 9);
        expect(3, [uint128(1), 1], START + DELAY, [uint128(5), 9]);
    }

    /// What is compared with is what holds now, not what was written last.
    function test_fallAfterARiseTookEffect() public {
        set(5, 9);
        set(50, 90);
        vm.warp(START + DELAY);
        announced(3, 40, 90, START + DELAY);
        set(40, 90);
        expect(3, [uint128(40), 90], 0, [uint128(0), 0]);
    }

    /// Prices are the provider's own, and each model's.
    function test_attack18_pricesOfOthers() public {
        set(5, 9);
        vm.prank(bob);
        registry.setPricing("m", 100, 100);
        vm.prank(alice);
        registry.setPricing("M", 100, 100);
        expect(1, [uint128(5), 9], 0, [uint128(0), 0]);
    }

    function test_attack32_widest() public {
        set(0, 0);
        set(type(uint128).max, type(uint128).max);
        vm.warp(START + DELAY);
        expect(2, [type(uint128).max, type(uint128).max], 0, [uint128(0), 0]);
    }

    /// After any sequence of calls: what is charged at a moment was announced `priceDelay` before, or is
    /// not more, in either part, than what held just before it.
    function testFuzz_attack18_neverASurprise(uint256 seed) public {
        set(10, 10);
        uint256 time = START;
        uint128[2] memory held = [uint128(10), 10];
        uint128[2] memory announcedPrice;
        uint256 announcedAt;
        for (uint256 i = 0; i < 24; ++i) {
            seed = uint256(keccak256(abi.encode(seed)));
            time += (seed >> 8) % 50;
            vm.warp(time);
            ProviderRegistry.Pricing memory seen = registry.pricing(alice, "m");
            checkNoSurprise(seen, held, announcedPrice, announcedAt);
            held = [seen.inputPrice, seen.outputPrice];

            (uint128 input, uint128 output) = (uint128((seed >> 16) % 20), uint128((seed >> 32) % 20));
            set(input, output);
            ProviderRegistry.Pricing memory after_ = registry.pricing(alice, "m");
            vm.assertEq(after_.version, seen.version + 1);
            vm.assertTrue(after_.inputPrice <= held[0] && after_.outputPrice <= held[1], "rose at once");
            held = [after_.inputPrice, after_.outputPrice];
            if (after_.pendingAt != 0) {
                vm.assertEq(after_.pendingAt, time + DELAY, "notice");
                (announcedPrice, announcedAt) = ([input, output], time);
            }
        }
    }

    function checkNoSurprise(
        ProviderRegistry.Pricing memory seen,
        uint128[2] memory held,
        uint128[2] memory announcedPrice,
        uint256 announcedAt
    ) private view {
        if (seen.inputPrice <= held[0] && seen.outputPrice <= held[1]) return;
        vm.assertEq(seen.inputPrice, announcedPrice[0]);
        vm.assertEq(seen.outputPrice, announcedPrice[1]);
        vm.assertGe(block.timestamp, announcedAt + DELAY);
    }
}
