// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @notice A contract wallet (ERC-1271) whose signatures are its owner's, until the owner changes.
contract Wallet {
    address public owner;

    constructor(address owner_) {
        owner = owner_;
    }

    function setOwner(address owner_) external {
        owner = owner_;
    }

    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        (address signer,,) = ECDSA.tryRecoverCalldata(hash, signature);
        return signer == owner ? this.isValidSignature.selector : bytes4(0xffffffff);
    }

    /// Sends a call, as wallets do.
    function act(address to, bytes calldata data) external returns (bytes memory) {
        (bool isDone, bytes memory result) = to.call(data);
        require(isDone, string(result));
        return result;
    }
}

/// @notice Accepts every signature, after using up all the gas it gets.
contract GasBurner {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        while (true) {}
        return 0x1626ba7e;
    }
}

/// @notice An account that rejects all signatures, such as one delegated to with EIP-7702.
contract Rejecting {
    fallback() external {
        revert("no");
    }
}
