// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Faucet} from "../../src/Faucet.sol";
import {PaymentChannels} from "../../src/PaymentChannels.sol";
import {ProviderRegistry} from "../../src/ProviderRegistry.sol";
import {TNZO} from "../../src/TNZO.sol";
import {Vm} from "./Vm.sol";

/// @notice Deploys the committed artifacts, and signs.
abstract contract Base {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    uint256 internal constant SUPPLY = 1_000_000_000e18;
    uint256 internal constant MINIMUM = 1000e18;
    uint64 internal constant UNBONDING = 7 days;
    uint64 internal constant DELAY = 60;
    uint64 internal constant GRACE = 1 hours;
    uint256 internal constant START = 1_800_000_000;
    uint256 internal constant FOR_EVER = type(uint256).max;
    /// Order of secp256k1.
    uint256 internal constant ORDER = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;

    uint256 internal constant ALICE_KEY = 0xA11CE;
    uint256 internal constant BOB_KEY = 0xB0B;
    uint256 internal constant CAROL_KEY = 0xCA401;
    address internal immutable alice = vm.addr(ALICE_KEY);
    address internal immutable bob = vm.addr(BOB_KEY);
    address internal immutable carol = vm.addr(CAROL_KEY);
    address internal constant ARBITER = address(0xA4B17E4);
    address internal constant TREASURY = address(0x74EA5);

    TNZO internal token;
    ProviderRegistry internal registry;
    PaymentChannels internal channels;
    Faucet internal faucet;

    function deployAll() internal {
        vm.warp(START);
        token = TNZO(vm.deployCode("artifacts/TNZO.json", abi.encode(address(this), SUPPLY)));
        registry = deployRegistry(address(token));
        channels = deployChannels(address(token));
        faucet = Faucet(
            vm.deployCode("artifacts/Faucet.json", abi.encode(token, uint256(20_000e18), uint256(1 days)))
        );
    }

    function deployRegistry(address token_) internal returns (ProviderRegistry) {
        bytes memory arguments = abi.encode(token_, ARBITER, TREASURY, MINIMUM, UNBONDING, DELAY);
        return ProviderRegistry(vm.deployCode("artifacts/ProviderRegistry.json", arguments));
    }

    function deployChannels(address token_) internal returns (PaymentChannels) {
        return PaymentChannels(vm.deployCode("artifacts/PaymentChannels.json", abi.encode(token_, GRACE)));
    }

    /// Gives tokens, allowed to both contracts.
    function fund(address who, uint256 amount) internal {
        token.transfer(who, amount);
        vm.startPrank(who);
        token.approve(address(registry), type(uint256).max);
        token.approve(address(channels), type(uint256).max);
        vm.stopPrank();
    }

    /// Brings a value of the fuzzer into a range, ends included.
    function bound(uint256 value, uint256 minimum, uint256 maximum) internal pure returns (uint256) {
        if (value >= minimum && value <= maximum) return value;
        return minimum + value % (maximum - minimum + 1);
    }

    // --- Signatures -------------------------------------------------------------------------------

    function pack(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    /// The other signature of the same message: `s` in the upper half.
    function flip(bytes memory signature) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = unpack(signature);
        return abi.encodePacked(r, bytes32(ORDER - uint256(s)), v == 27 ? uint8(28) : uint8(27));
    }

    function unpack(bytes memory signature) internal pure returns (uint8 v, bytes32 r, bytes32 s) {
        assembly ("memory-safe") {
            r := mload(add(signature, 0x20))
            s := mload(add(signature, 0x40))
            v := byte(0, mload(add(signature, 0x60)))
        }
    }

    /// Written out here, from EIP-712 and the draft, and not asked of the contract.
    function domain(string memory name, uint256 chainId, address contract_) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256(
                    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
                ),
                keccak256(bytes(name)),
                keccak256("1"),
                chainId,
                contract_
            )
        );
    }

    function typed(bytes32 domain_, bytes memory message) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", domain_, keccak256(message)));
    }

    function channelsDomain() internal view returns (bytes32) {
        return domain("EVM Payment Channel", block.chainid, address(channels));
    }

    function tokenDomain() internal view returns (bytes32) {
        return domain("Tenzro", block.chainid, address(token));
    }

    function voucher(uint256 key, bytes32 id, uint128 amount) internal view returns (bytes memory) {
        return pack(key, voucherDigest(channelsDomain(), id, amount));
    }

    function voucherDigest(bytes32 domain_, bytes32 id, uint128 amount) internal pure returns (bytes32) {
        bytes32 typeHash = keccak256("Voucher(bytes32 channelId,uint128 cumulativeAmount)");
        return typed(domain_, abi.encode(typeHash, id, amount));
    }

    function payeeAuthorization(
        uint256 key,
        string memory kind,
        bytes32 id,
        uint128 amount,
        uint256 nonce,
        uint256 deadline
    ) internal view returns (bytes memory) {
        string memory fields =
            "Authorization(bytes32 channelId,uint128 cumulativeAmount,uint256 nonce,uint256 deadline)";
        bytes32 typeHash = keccak256(bytes(string.concat(kind, fields)));
        return pack(key, typed(channelsDomain(), abi.encode(typeHash, id, amount, nonce, deadline)));
    }

    /// EIP-3009; `kind` is "Transfer" or "Receive".
    function transferDigest(
        string memory kind,
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce
    ) internal view returns (bytes32) {
        string memory fields =
            "WithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)";
        bytes32 typeHash = keccak256(bytes(string.concat(kind, fields)));
        return typed(tokenDomain(), abi.encode(typeHash, from, to, value, validAfter, validBefore, nonce));
    }

    /// An authorization that lets the channels receive, valid for ever.
    function deposit3009(uint256 key, uint128 value, bytes32 nonce) internal view returns (bytes memory) {
        address from = vm.addr(key);
        return pack(key, transferDigest("Receive", from, address(channels), value, 0, FOR_EVER, nonce));
    }

    function permitDigest(
        address owner,
        address spender,
        uint256 value,
        uint256 nonce,
        uint256 deadline
    ) internal view returns (bytes32) {
        bytes32 typeHash = keccak256(
            "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
        );
        return typed(tokenDomain(), abi.encode(typeHash, owner, spender, value, nonce, deadline));
    }

    // --- Channels ---------------------------------------------------------------------------------

    function idOf(
        address payer,
        address payee,
        bytes32 salt,
        address signer
    ) internal view returns (bytes32) {
        return keccak256(
            abi.encode(payer, payee, address(token), salt, signer, address(channels), block.chainid)
        );
    }

    /// A channel from Alice to Bob.
    function openChannel(uint128 deposit, bytes32 salt) internal returns (bytes32) {
        vm.prank(alice);
        return channels.open(bob, address(token), deposit, salt, address(0));
    }
}
