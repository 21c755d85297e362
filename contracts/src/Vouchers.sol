// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

import {Signatures} from "./Signatures.sol";

/// @title What payers and payees of channels sign.
/// @dev EIP-712 types and domain are those of the MPP draft draft-evm-session-00.
abstract contract Vouchers is EIP712 {
    bytes32 private constant VOUCHER_TYPEHASH =
        keccak256("Voucher(bytes32 channelId,uint128 cumulativeAmount)");
    bytes32 internal constant SETTLE_TYPEHASH = keccak256(
        "SettleAuthorization(bytes32 channelId,uint128 cumulativeAmount,uint256 nonce,uint256 deadline)"
    );
    bytes32 internal constant CLOSE_TYPEHASH = keccak256(
        "CloseAuthorization(bytes32 channelId,uint128 cumulativeAmount,uint256 nonce,uint256 deadline)"
    );

    /// @notice Whether the channel's payee used this nonce up, for settling or closing.
    mapping(bytes32 channelId => mapping(uint256 nonce => bool)) public payeeNonceUsed;

    /// @notice The signature is not by whom it has to be.
    error InvalidSignature();
    /// @notice The payee's authorization is used up.
    error NonceAlreadyUsed();
    /// @notice The payee's authorization is past its deadline.
    error AuthorizationExpired();

    constructor() EIP712("EVM Payment Channel", "1") {}

    /// @notice The domain separator of all signatures here; another one after a fork of the chain.
    function domainSeparator() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    /// @notice What the payer, or its authorized signer, signs: that the payee may have this much of the
    /// channel in all.
    /// @param channelId The channel.
    /// @param cumulativeAmount Wei since the channel was opened.
    function voucherDigest(bytes32 channelId, uint128 cumulativeAmount) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, cumulativeAmount)));
    }

    function _requireVoucher(
        address signer,
        bytes32 channelId,
        uint128 cumulativeAmount,
        bytes calldata signature
    ) internal view {
        bytes32 digest = voucherDigest(channelId, cumulativeAmount);
        require(Signatures.isValid(signer, digest, signature), InvalidSignature());
    }

    /// @dev Uses up the payee's authorization to let anybody settle or close.
    function _useAuthorization(
        bytes32 typeHash,
        address payee,
        bytes32 channelId,
        uint128 cumulativeAmount,
        uint256 nonce,
        uint256 deadline,
        bytes calldata signature
    ) internal {
        require(block.timestamp <= deadline, AuthorizationExpired());
        require(!payeeNonceUsed[channelId][nonce], NonceAlreadyUsed());
        bytes32 message = keccak256(abi.encode(typeHash, channelId, cumulativeAmount, nonce, deadline));
        require(Signatures.isValid(payee, _hashTypedDataV4(message), signature), InvalidSignature());
        payeeNonceUsed[channelId][nonce] = true;
    }
}
