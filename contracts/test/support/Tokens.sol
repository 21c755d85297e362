// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @notice What tokens other than TNZO do. Everybody may mint.
abstract contract TestToken is ERC20("Test", "TEST") {
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    /// The ERC-3009 call of channels, with every signature accepted.
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32,
        bytes calldata
    ) external {
        _transfer(from, to, value);
    }
}

/// @notice Keeps a hundredth of each transfer.
contract FeeToken is TestToken {
    function _update(address from, address to, uint256 value) internal override {
        if (from == address(0) || to == address(0)) return super._update(from, to, value);
        super._update(from, to, value - value / 100);
        super._update(from, address(0), value / 100);
    }
}

/// @notice Says no instead of reverting, and moves nothing.
contract FalseToken is TestToken {
    bool public isRefusing;

    function refuse(bool isRefusing_) external {
        isRefusing = isRefusing_;
    }

    function transfer(address to, uint256 value) public override returns (bool) {
        return !isRefusing && super.transfer(to, value);
    }

    function transferFrom(address from, address to, uint256 value) public override returns (bool) {
        return !isRefusing && super.transferFrom(from, to, value);
    }
}

/// @notice Says yes and moves nothing.
contract EmptyToken is TestToken {
    function transferFrom(address, address, uint256) public pure override returns (bool) {
        return true;
    }
}

/// @notice Makes one call in the middle of the next transfer, and passes its failure on where told to.
contract ReentrantToken is TestToken {
    address private _target;
    bytes private _call;
    /// What the call came to.
    bool public isCalled;
    bool public isDone;
    bytes public result;

    function arm(address target, bytes calldata call_) external {
        (_target, _call, isCalled, isDone, result) = (target, call_, false, false, "");
    }

    function _update(address from, address to, uint256 value) internal override {
        if (_target != address(0)) {
            address target = _target;
            _target = address(0);
            isCalled = true;
            (isDone, result) = target.call(_call);
        }
        super._update(from, to, value);
    }
}
